"""What is said of a checkpoint that cannot be read: which one, the words of whoever found out, and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError
from safetensors import SafetensorError

from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.strangers import out_of_memory, reason_of
from hf_layerdrop.errors import CheckpointError, LayerDropError

# What transformers, safetensors and the Hub raise of files that are not as they should be.
_OF_FILES = (OSError, ValueError, RecursionError, SafetensorError, StrictDataclassError, UnpicklingError)


@contextmanager
def reading(name_or_path: Any, *, alone: bool = False) -> Iterator[None]:
    """Name the checkpoint that transformers, safetensors or the Hub complain about, in one sentence with their words.

    Args:
        name_or_path: The checkpoint.
        alone: Whether nothing but the checkpoint has a say in the block, no argument of a caller: then whatever is
            raised, a ``KeyError`` from deep inside too, comes from what its files say.

    Raises:
        CheckpointError: For each of these complaints.
    """
    try:
        with nullcontext() if is_there(name_or_path) else bounded_waits():
            yield
    except LayerDropError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, LayerDropError):  # of ours, in words of transformers
            raise error.__cause__ from None
        if out_of_memory(error) or not (alone or isinstance(error, _OF_FILES) or type(error) is RuntimeError):
            raise
        raise CheckpointError(unreadable(str(name_or_path), error)) from error


def unreadable(checkpoint: str, error: BaseException) -> str:
    """Say that a checkpoint cannot be read, and what to do."""
    if isinstance(error, ImportError):
        return f"The checkpoint {checkpoint!r} needs a library that is not there ({reason_of(error)}): install it."
    if not is_there(checkpoint) and isinstance(error, OSError | HTTPError | HFValidationError):
        return (
            f"{checkpoint!r} is neither a local folder nor could it be read from the Hub ({reason_of(error)}): check "
            "its name, the revision and the network, and for a private model log in with `hf auth login`."
        )
    return f"The checkpoint {checkpoint!r} cannot be read ({reason_of(error)}): correct this, or download it again."


@contextmanager
def hub_answering(repo_id: str) -> Iterator[None]:
    """Tell an answer that is none of the Hub's from a Hub that refuses: the page to log in to a network, say.

    Raises:
        CheckpointError: If it is one.
    """
    try:
        yield
    except (HTTPError, OSError, HFValidationError):
        raise
    except Exception as error:  # the Hub's client reads JSON of a known form
        raise CheckpointError(
            f"What answered for {repo_id!r} is not the Hub ({reason_of(error)}): a page to log in to this network, or "
            "a proxy, may stand between; open https://huggingface.co in a browser, or check HF_ENDPOINT."
        ) from error


def is_there(path: Any) -> bool:
    """Tell whether there is a file or folder of this name, which may be none that a file can have."""
    try:
        return Path(path).exists()
    except (OSError, TypeError, ValueError):  # too long, with a null, or none at all
        return False
