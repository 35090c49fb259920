"""Arguments that several commands share, and the checks of them that cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_layerdrop.checkpoints.headers import has_only_pickle, read_config
from hf_layerdrop.checkpoints.outputs import check_above, check_writable
from hf_layerdrop.checkpoints.provenance import root_layers, saved_provenance
from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.checkpoints.tokenizers import no_tokenizer, processor_files
from hf_layerdrop.errors import CheckpointError, OutputExistsError
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import RESULTS_FILE, read_results
from hf_layerdrop.samplers.keep_layers import parse_keep_layers
from hf_layerdrop.tasks.registry import MORE_TASKS, TASKS

MAX_SEED = 2**32 - 1  # the largest that numpy takes
if TYPE_CHECKING:
    from hf_layerdrop.checkpoints.stored_model import StoredModel

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or the id of a model on the Hub.")]
KeepLayersSpec = Annotated[
    str,
    typer.Option(
        "--keep-layers",
        metavar="SPEC",
        help="A depth (6), indices (0,2,4), a slice (::2), every_other, every_other:p, nested:n, first:n, last:n, all, "
        "a selection file; as measured best:6, fastest:0.99; by stack: 'encoder=6;decoder=::2'.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the Hub.", show_default=False)
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code: only if you trust them.")
]


TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that the model brings along: only if you have read it."),
]

TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help=f"Of GLUE: {', '.join(TASKS)}; {', '.join(MORE_TASKS)}. sst2-sample needs no network. "
        "Left out: a classification of your own files.",
        show_default=False,
    ),
]
TrainFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Local training rows: CSV, TSV, JSON, JSONL or Parquet; for language modelling also TXT.",
        show_default=False,
    ),
]
ValidationFiles = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Local validation rows; for mnli give it twice.", show_default=False),
]
TextColumns = Annotated[
    str | None,
    typer.Option(
        "--text-columns",
        metavar="A[,B]",
        help="Text columns of the data, such as de,en for a translation; A+B joins two.",
        show_default=False,
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", metavar="NAME", help="Label column of the data.", show_default=False)
]
DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="A data set on the Hub, or its folder.", show_default=False),
]
DatasetConfig = Annotated[
    str | None,
    typer.Option("--dataset-config", metavar="NAME", help="Its configuration, if several.", show_default=False),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=1,
        help="Longer inputs are cut to this many tokens.",
        show_default="what is usual for the task, 128 for GLUE",
    ),
]
MaxTargetLength = Annotated[
    int | None,
    typer.Option("--max-target-length", min=2, help="Most tokens of a generated text.", show_default="128"),
]
NumBeams = Annotated[
    int | None, typer.Option("--num-beams", min=1, help="Width of the beam where text is generated.", show_default="1")
]


Seed = Annotated[
    int,
    # Python's own generators would draw the same for -1 as for 1
    typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of everything that is drawn."),
]


def listed(columns: str | None) -> list[str]:
    """Split a list of columns."""
    return [column.strip() for column in columns.split(",")] if columns else []


Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        help="Results of sweep or train (JSON, CSV) for the model card.",
        show_default=f"the recommended sets of the model, else {RESULTS_FILE} beside it",
    ),
]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Go on where the model has no tokenizer.")]


def given_results(given: Path | None) -> list[SubNetworkResult] | None:
    """Read the results for the card that were given; else what lies beside the model is found when it is saved."""
    return None if given is None else read_results(given)


def require_tokenizer(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a local model of texts without a tokenizer where a task is to be measured; one on the Hub comes later.

    A model of images or speech does not lack one: that it does not fit the task is found when it is loaded.

    Raises:
        CheckpointError: There are no files of one.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if not Path(model).is_dir() or not any("vocab_size" in part for part in parts):
        return
    if not processor_files(Path(model)):
        raise CheckpointError(no_tokenizer(model))


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done for it.

    Raises:
        OutputExistsError: The folder exists, and --overwrite was not given; or it is a file, or cannot be written.
    """
    check_above(folder)
    if folder.is_file():
        raise OutputExistsError(f"The output folder {str(folder)!r} is a file: give another by --output.")
    if folder.exists() and not overwrite:
        raise OutputExistsError(f"The output folder {str(folder)!r} exists: give another by --output, or --overwrite.")
    check_writable(folder / RESULTS_FILE)


def checked_model(
    model: str, *, revision: str | None, token: str | None = None, trust_remote_code: bool = False
) -> StoredModel:
    """Look at a checkpoint that is to be trained, measured or cut; of a PEFT adapter, at its base.

    Raises:
        CheckpointError: It cannot be read, or what the config says of LayerDrop is damaged or of another model.
        UnsupportedModelError: It cannot be cut by layers.
        typer.BadParameter: A revision of a local folder.
    """
    check_revision(model, revision)
    headers = read_headers(model, revision=revision, token=token)

    from hf_layerdrop.checkpoints.stored_model import find_stored_model

    where: dict[str, Any] = {"revision": revision, "token": token} if headers.source == model else {}
    where["trust_remote_code"] = trust_remote_code
    stored = find_stored_model(headers, **where)
    root_layers(saved_provenance(headers.config), stored.depths)
    return stored


def check_revision(model: str, revision: str | None) -> None:
    """Refuse a revision of a local folder, which transformers would not look at."""
    if revision is not None and Path(model).is_dir():
        raise typer.BadParameter(
            f"--revision {revision} is for a model on the Hub, and {model!r} is a local folder, which has one version: "
            "leave it out"
        )


def checkpoint_facts(
    model: str, *, revision: str | None, allow_pickle: bool, token: str | None = None, trust_remote_code: bool = False
) -> tuple[Mapping[str, Any], dict[str, int]]:
    """Return the config of a checkpoint and the depth of each stack.

    Pickled weights have no headers: with ``allow_pickle`` no stacks are returned for them, and what is asked of the
    layers is checked when the model is loaded.
    """
    if allow_pickle and has_only_pickle(model):
        check_revision(model, revision)
        config = read_config(model)
        saved_provenance(config)
        return config, {}
    stored = checked_model(model, revision=revision, token=token, trust_remote_code=trust_remote_code)
    return stored.headers.config, stored.depths


def check_keep_layers(
    model: str,
    keep_layers: str,
    *,
    revision: str | None,
    allow_pickle: bool,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Check a specification against what a checkpoint holds, before any weights are read."""
    _, depths = checkpoint_facts(
        model, revision=revision, allow_pickle=allow_pickle, token=token, trust_remote_code=trust_remote_code
    )
    if depths:
        read = partial(read_recommended, model, revision=revision, token=token)
        parse_keep_layers(keep_layers, depths, recommended=read)


def loading_arguments(
    model: str, *, revision: str | None, allow_pickle: bool, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Translate options for from_pretrained; pickles are read only where there is no other."""
    arguments: dict[str, Any] = {} if revision is None else {"revision": revision}
    if allow_pickle and has_only_pickle(model):
        arguments["use_safetensors"] = False
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    return arguments
