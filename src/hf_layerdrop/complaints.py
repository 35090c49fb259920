"""What is wrong with a checkpoint, in one sentence that says what to do: what others raise, and what they let pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_layerdrop.errors import CheckpointError, LayerDropError


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
        said = _explanation(error, repr(str(name_or_path)))
        if said is None:
            raise
        raise CheckpointError(said) from error


def _explanation(error: Exception, checkpoint: str) -> str | None:
    """Say what an error tells of a checkpoint; None for one that is about something else."""
    reason = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return f"The weights of {checkpoint} cannot be read ({reason}); the file is damaged, so download it again."
    if isinstance(error, StrictDataclassError):
        return (
            f"The config of {checkpoint}, with the arguments given, is wrong: {reason}; correct the argument or the "
            "config, or download it again."
        )
    if isinstance(error, UnpicklingError):
        return (
            f"The pickle of {checkpoint} is damaged, or holds more than tensors, which is never read: have it saved "
            "again as safetensors by whoever made it."
        )
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in reason:
        return (
            f"Weights of {checkpoint} have other shapes than its config says, as the report above lists: use the "
            "config that belongs to them, or pass ignore_mismatched_sizes=True to begin such weights anew."
        )
    if _speaks_of_checkpoint(error):
        if "safetensors" in reason and "use_safetensors" not in reason:
            reason += " Pass use_safetensors=False to read a pickle checkpoint that you trust."
        return f"{checkpoint} cannot be loaded: {reason}"
    return None


def _speaks_of_checkpoint(error: Exception) -> bool:
    """Tell transformers' complaint about an unknown model type, a bare ValueError, from one about an argument."""
    about_types = "model type" in str(error) or "Unrecognized model" in str(error)
    return isinstance(error, OSError) or (isinstance(error, ValueError) and about_types)


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
