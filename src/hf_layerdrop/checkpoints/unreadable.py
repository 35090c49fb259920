"""What is said of a checkpoint that cannot be read: which one, the words of whoever found out, and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_layerdrop.errors import CheckpointError, LayerDropError, said_by


@contextmanager
def reading(name_or_path: Any) -> Iterator[None]:
    """Name the checkpoint that transformers, safetensors or the Hub complain about, in one sentence with their words.

    Raises:
        CheckpointError: For each of these complaints.
    """
    try:
        yield
    except LayerDropError:
        raise
    except (OSError, ValueError, SafetensorError, StrictDataclassError, UnpicklingError) as error:
        raise CheckpointError(unreadable(str(name_or_path), error)) from error
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # memory that ran out is not the checkpoint's fault
            raise
        raise CheckpointError(unreadable(str(name_or_path), error)) from error


def unreadable(checkpoint: str, error: BaseException) -> str:
    """Say that a checkpoint cannot be read, and what to do."""
    if Path(checkpoint).exists():
        return f"The checkpoint {checkpoint!r} cannot be read ({said_by(error)}): correct this, or download it again."
    return (
        f"{checkpoint!r} is neither a local folder nor could it be read from the Hub ({said_by(error)}): check its "
        "name, the revision and the network, and for a private model log in with `hf auth login`."
    )
