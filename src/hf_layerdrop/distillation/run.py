"""Distil a finetuned classifier on its task, and measure the teacher, the untrained cut and the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.headers import read_config
from hf_layerdrop.checkpoints.outputs import check_replaceable, check_writable, whole_folder
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.distillation.config import DistillationConfig, check_classification, student_layers
from hf_layerdrop.errors import CheckpointError, DistillationError
from hf_layerdrop.hub.origin import find_source
from hf_layerdrop.hub.save import Extras, write_checkpoint
from hf_layerdrop.reports.card import MeasuredOn
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers, resolve
from hf_layerdrop.tasks.classification import padding_collator
from hf_layerdrop.tasks.metrics import compute_metrics_for
from hf_layerdrop.tasks.task import MAX_LENGTH, TaskData, tokenize
from hf_layerdrop.training.before_first_step import before_first_step, check_arguments
from hf_layerdrop.training.card import measured_on
from hf_layerdrop.training.train import check_output, continue_training, measure_depths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hf_layerdrop.distillation.budget import LayerForwards
    from hf_layerdrop.distillation.trainer import DistillationTrainer


@dataclass(frozen=True)
class DistillationRun:
    """What `distill` leaves behind.

    Attributes:
        trainer: The trainer, holding the student.
        teacher: What the teacher scores.
        cut: What the student scored before it learned anything.
        student: What it scores now. Both name its layers in the numbering of the teacher.
        layer_forwards: What the training took.
        output_dir: The student as a plain checkpoint, with tokenizer and card.
    """

    trainer: DistillationTrainer
    teacher: SubNetworkResult
    cut: SubNetworkResult
    student: SubNetworkResult
    layer_forwards: LayerForwards
    output_dir: Path


def distill(
    data: TaskData,
    teacher: str,
    arguments: TrainingArguments,
    output_dir: str | Path,
    *,
    keep_layers: KeepLayers | None = None,
    distillation: DistillationConfig | None = None,
    max_length: int = MAX_LENGTH,
    overwrite: bool = False,
) -> DistillationRun:
    """Cut a student out of a finetuned model and train it to imitate the whole model on the task.

    Args:
        data: The task and its rows, from `load_task_data`.
        teacher: A finetuned checkpoint folder, or a model on the Hub.
        arguments: Trainer's settings; their ``output_dir`` takes the checkpoints of the training, from which
            ``resume_from_checkpoint`` continues.
        output_dir: Folder of the student; it appears whole at the end.
        keep_layers: The layers that the student begins with; by default every other one, spread evenly.
        distillation: Weights of the losses, and temperature.
        max_length: Inputs of more tokens are cut.
        overwrite: Replace an existing output folder.

    Raises:
        LayerDropError: One of its kinds, if the data, the teacher, a setting or an output folder is not usable.
    """
    from torch import accelerator
    from transformers import Trainer

    from hf_layerdrop.architectures.stacks import depths_of
    from hf_layerdrop.distillation.student import student_of
    from hf_layerdrop.distillation.trainer import DistillationTrainer
    from hf_layerdrop.models.auto import load_checkpoint
    from hf_layerdrop.training.callbacks import StartCallback

    output_dir = Path(output_dir)
    check_classification(data.task)
    check_replaceable(output_dir, overwrite)
    check_writable(output_dir)
    run_dir = Path(str(arguments.output_dir))
    checkpoint = check_output(run_dir, overwrite=overwrite, resume=arguments.resume_from_checkpoint)
    check_arguments(arguments, data.task.metrics, data.task.name)
    tokenizer = load_tokenizer(teacher)
    encoded = tokenize(data, tokenizer, max_length=max_length)
    network = load_checkpoint(teacher)
    if getattr(network, compat.ADAPTER_LOADED.name, False):
        raise DistillationError(
            f"The teacher {teacher!r} is an adapter of PEFT, whose student could not be saved without its base: save "
            "what merge_and_unload() returns, and distil that."
        )
    keep_layers = resolve(keep_layers, depths_of(network), partial(read_recommended, teacher))
    kept = student_layers(keep_layers, depths_of(network))
    if not accelerator.is_available():
        arguments.dataloader_pin_memory = False  # torch would warn of it at every data loader
    settings = {
        "args": arguments,
        "train_dataset": encoded.train,
        "eval_dataset": next(iter(encoded.validation.values())),
        "processing_class": tokenizer,
        "data_collator": padding_collator(tokenizer),
        "compute_metrics": compute_metrics_for(data.task),
    }
    student = student_of(network, keep_layers)
    if checkpoint is not None:
        _check_same_layers(checkpoint, student)
    start = StartCallback()
    with before_first_step(run_dir, lambda: start.begun):
        measuring = Trainer(network, **settings)
        start.begun = True  # the model runs: what goes wrong is told as it is
        whole, cut = measure_depths(measuring, encoded, ["all", kept])
        start.begun = False
        trainer = DistillationTrainer(student, teacher=network, distillation=distillation, **settings)
        trainer.add_callback(start)
        continue_training(trainer, run_dir, checkpoint)
    learned = replace(measure_depths(trainer, encoded, ["all"])[0], keep_layers=kept)
    if trainer.is_world_process_zero():
        _save(student, output_dir, teacher, tokenizer, [whole, learned], data, overwrite)
    return DistillationRun(trainer, whole, cut, learned, trainer.layer_forwards, output_dir)


def _check_same_layers(checkpoint: Path, student: PreTrainedModel) -> None:
    """Refuse a checkpoint of another student: Trainer would load the layers that fit, and warn."""
    saved = saved_provenance(read_config(checkpoint)).get("keep_layers")
    wanted = student.config.hf_layerdrop["keep_layers"]
    if saved != wanted:
        raise CheckpointError(
            f"{str(checkpoint)!r} is of a student that began with layers {saved}, not {wanted}: continue with the "
            "--keep-layers that the run began with."
        )


def _save(
    student: PreTrainedModel,
    output_dir: Path,
    teacher: str,
    tokenizer: PreTrainedTokenizerBase,
    results: list[SubNetworkResult],
    data: TaskData,
    overwrite: bool,
) -> None:
    extras = Extras(results, False, tokenizer, MeasuredOn(**measured_on(data)))
    with whole_folder(output_dir, partial(check_replaceable, output_dir, overwrite)) as folder:
        write_checkpoint(student, folder, output_dir.resolve().name, find_source(teacher, None, {}), extras)
