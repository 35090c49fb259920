"""Between the arguments and the first step: what Trainer refuses there, in one sentence, and no empty folder left."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_layerdrop.errors import LayerDropError, TaskError, TrainingArgumentsError

_REFUSALS = (ValueError, TypeError, ImportError, ArithmeticError, OSError)
_HUB_CLIENTS = ("httpx", "httpcore", "huggingface_hub", "requests")


@contextmanager
def before_first_step(output_dir: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Turn what Trainer raises of its arguments while it gets ready into one sentence.

    Where anything goes wrong and nothing was written yet, the output folder that Trainer makes is taken away again.

    Args:
        output_dir: Trainer's output folder.
        has_begun: Whether Trainer is ready: what goes wrong then is not the fault of an argument.

    Raises:
        TrainingArgumentsError: Trainer refuses an argument.
    """
    missing = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        _remove_empty(missing)
        if isinstance(error, Exception) and not has_begun() and (said := _refusal(error)) is not None:
            raise TrainingArgumentsError(said) from error
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # the first that holds something, or was never made, ends it
        for folder in folders:
            folder.rmdir()


def _refusal(error: Exception) -> str | None:
    """Say what is wrong with the arguments; None for an error that is about something else."""
    if isinstance(error, LayerDropError):
        return None
    if type(error).__module__.startswith(_HUB_CLIENTS):
        from hf_layerdrop.checkpoints.diagnosis import failure_reason

        return (
            f"The Hub did not make or find the repository to push to ({failure_reason(error)}): check hub_model_id and "
            "the network, log in with `hf auth login`, or leave push_to_hub out."
        )
    reason = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, _REFUSALS) or "to be installed" in reason:
        return f"Trainer cannot start with its arguments ({type(error).__name__}: {reason}): correct what it names."
    return None


def check_best_metric(metric: str | None, metrics: Sequence[str], task: str) -> None:
    """Refuse to choose the best model by a metric that a task does not have; Trainer finds out after the first epoch.

    Args:
        metric: Trainer's ``metric_for_best_model``.
        metrics: The metrics of the task, beside the loss.
        task: Its name.

    Raises:
        TaskError: It is neither one of them, nor that of a depth, such as ``depth_6_accuracy``.
    """
    known = [*metrics, "loss"]
    wanted = (metric or "loss").removeprefix("eval_")
    if wanted in known or (wanted.startswith("depth_") and wanted.endswith(tuple(f"_{name}" for name in known))):
        return
    nearest = difflib.get_close_matches(wanted, known, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise TaskError(
        f"metric_for_best_model is {metric!r}{hint}, but task {task} has {', '.join(known)}: take one of these, or "
        f"that of a depth, such as depth_6_{known[0]}."
    )
