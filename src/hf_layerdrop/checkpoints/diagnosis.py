"""What is wrong with a checkpoint, in one sentence that says what to do: what others raise, and what they let pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from hf_layerdrop.checkpoints.headers import no_folder
from hf_layerdrop.checkpoints.model_types import says_unknown
from hf_layerdrop.errors import CheckpointError, LayerDropError

# transformers' complaint about a type that it does not know, or that is missing
_UNKNOWN = re.compile(r"has model type `(?P<type>[^`]*)` but|Unrecognized model in ")


@contextmanager
def clear_errors(name_or_path: Any) -> Iterator[None]:
    """Turn what transformers and safetensors raise about a checkpoint into one sentence that says what to do.

    Raises:
        CheckpointError: For each of these.
    """
    try:
        yield
    except LayerDropError:
        raise
    except Exception as error:
        name = str(name_or_path)
        cause = error.__cause__
        said = nothing_found(name, cause) if _finds_nothing(cause) else _explanation(error, name)
        if said is None:
            raise
        raise CheckpointError(said) from error


def _explanation(error: Exception, checkpoint: str) -> str | None:
    """Say what an error tells of a checkpoint; None for one that is about something else."""
    reason = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return f"The weights of {checkpoint!r} cannot be read ({reason}); the file is damaged, so download it again."
    if isinstance(error, StrictDataclassError):
        return (
            f"The config of {checkpoint!r}, with the arguments given, is wrong: {reason}; correct the argument or the "
            "config, or download it again."
        )
    if isinstance(error, UnpicklingError):
        return (
            f"The pickle of {checkpoint!r} is damaged, or holds more than tensors, which is never read: have it saved "
            "again as safetensors by whoever made it."
        )
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in reason:
        return (
            f"Weights of {checkpoint!r} have other shapes than its config says, as the report above lists: use the "
            "config that belongs to them, or pass ignore_mismatched_sizes=True to begin such weights anew."
        )
    if isinstance(error, ValueError) and (found := _UNKNOWN.search(reason)):
        return says_unknown(found["type"] if found["type"] != "None" else None, checkpoint)
    if isinstance(error, OSError):
        if "safetensors" in reason and "use_safetensors" not in reason:
            reason += " Pass use_safetensors=False to read a pickle checkpoint that you trust."
        return f"{checkpoint!r} cannot be loaded: {reason}"
    return None


def nothing_found(checkpoint: str, cause: BaseException | None) -> str:
    """Say that a name is neither a folder nor a model that the Hub could give, and why."""
    if isinstance(cause, HFValidationError):  # no repository can be called so: a path then
        return no_folder(checkpoint)
    return (
        f"{checkpoint!r} is neither a local folder nor could it be read from the Hub ({failure_reason(cause)}): check "
        "its name, the revision and the network, and for a private model log in with `hf auth login`."
    )


def failure_reason(error: BaseException | None) -> str:
    """Say in a few words why the Hub did not answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on"
    if "outgoing traffic has been disabled" in str(error):
        return "it is not in the cache, and downloads are switched off"
    return "no answer, or not a repository's name"


def _finds_nothing(cause: BaseException | None) -> bool:
    """Tell a name behind which there is nothing; of a gated model, transformers says better what to do."""
    missing = isinstance(cause, HFValidationError | LocalEntryNotFoundError | RepositoryNotFoundError)
    return missing and not isinstance(cause, GatedRepoError)


def check_shapes(mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights of other shapes than the model's; transformers would point to a report that it has logged."""
    for name, found, wanted in sorted(mismatched):
        raise CheckpointError(
            f"The weight {name!r} of the checkpoint has the shape {tuple(found)}, but by its config, with the "
            f"arguments given, it is {tuple(wanted)}: use the config that belongs to these weights, or pass "
            "ignore_mismatched_sizes=True in Python to begin such weights anew."
        )


def check_layers_are_whole(missing: Iterable[tuple[str, int, str] | None]) -> None:
    """Refuse layers that lack a weight: a head may be new, but a layer of random numbers is not worth writing down.

    Args:
        missing: Stack, layer and name of each weight that the checkpoint has not; None for one of no layer.
    """
    for stack, layer, rest in filter(None, missing):
        raise CheckpointError(
            f"The checkpoint lacks the weight {rest!r} of layer {layer} of the {stack}, which would have to be made "
            "up: download it again, or leave this layer out."
        )
