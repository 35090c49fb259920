"""A sample of SST-2 that comes with the package, for the demo and the tests; see ``data/sst2/README.md``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_layerdrop.errors import require

if TYPE_CHECKING:
    from datasets import DatasetDict

SST2_FOLDER = Path(__file__).with_name("data") / "sst2"


def embedded_sst2() -> DatasetDict:
    """Read ``train``, in random order, so that its first rows are a sample too; and all ``validation`` rows."""
    require("datasets", "pyarrow")
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict

    # Read straight into memory: `load_dataset` would copy the files into the user's cache first.
    splits = ("train", "validation")
    return DatasetDict(
        {split: Dataset(pyarrow.parquet.read_table(SST2_FOLDER / f"{split}.parquet")) for split in splits}
    )
