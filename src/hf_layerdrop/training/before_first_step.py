"""Between the arguments and the first step: what is refused there is one sentence, and leaves no empty folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hf_layerdrop.errors import LayerDropError, TaskError, TrainingArgumentsError, said_by

if TYPE_CHECKING:
    from transformers import TrainingArguments

_COUNT = range(1, 2**31)
_ALLOWED = {
    "seed": range(2**32),  # what numpy takes
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
}


@contextmanager
def before_first_step(output_dir: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Turn what Trainer raises while it gets ready into one sentence.

    Where anything goes wrong and nothing was written yet, the output folder that Trainer makes is taken away again.

    Args:
        output_dir: Trainer's output folder.
        has_begun: Whether Trainer is ready: what goes wrong then is told as it is.

    Raises:
        TrainingArgumentsError: Trainer refuses an argument.
    """
    missing = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the first that holds something, or was never made, ends it
            for folder in missing:
                folder.rmdir()
        if isinstance(error, LayerDropError) or not isinstance(error, Exception) or has_begun():
            raise
        raise TrainingArgumentsError(
            f"Trainer cannot start with its arguments ({said_by(error)}): correct what it names."
        ) from error


def check_arguments(arguments: TrainingArguments, metrics: Sequence[str], task: str) -> None:
    """Refuse what Trainer would find out in its first evaluation, or say without a name: it may have trained for hours.

    Args:
        arguments: Trainer's settings.
        metrics: The metrics of the task, beside the loss; one of them, or of a depth, chooses the best model.
        task: Its name.

    Raises:
        TrainingArgumentsError: A number is out of range.
        TaskError: ``metric_for_best_model`` is no metric of the task.
    """
    for name, allowed in _ALLOWED.items():
        if (value := getattr(arguments, name)) not in allowed:
            raise TrainingArgumentsError(f"{name} is {value}; it must be from {allowed[0]} to {allowed[-1]}.")
    if arguments.batch_eval_metrics or not arguments.eval_do_concat_batches:
        name = "batch_eval_metrics=True" if arguments.batch_eval_metrics else "eval_do_concat_batches=False"
        raise TrainingArgumentsError(
            f"{name} hands the metrics of task {task} other things than all predictions at once: leave it out."
        )
    known, metric = [*metrics, "loss"], arguments.metric_for_best_model or "loss"
    wanted = metric.removeprefix("eval_")
    of_depth = wanted.startswith("depth_") and wanted.endswith(tuple(f"_{name}" for name in known))
    if wanted not in known and not of_depth:
        raise TaskError(
            f"metric_for_best_model is {metric!r}, but task {task} has {', '.join(known)}: take one of these, or that "
            f"of a depth, such as depth_6_{known[0]}."
        )
