"""Cut a finetuned model, heal it on its task, and measure it before and after on the same rows."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.outputs import check_apart, check_replaceable, check_writable, whole_folder
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.errors import HealingError, TaskError, require
from hf_layerdrop.healing.config import NONE, HealingConfig, Kept, numbered_within, planned_cuts
from hf_layerdrop.hub.origin import find_source
from hf_layerdrop.hub.save import Extras, write_checkpoint
from hf_layerdrop.reports.card import MeasuredOn
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import RESULTS_FILE, write_results
from hf_layerdrop.samplers.keep_layers import KeepLayers, choice_behind, parse_keep_layers, resolve
from hf_layerdrop.tasks.task import Task, TaskData
from hf_layerdrop.training.before_first_step import check_arguments
from hf_layerdrop.training.card import measured_on
from hf_layerdrop.training.recommend import note_recommended

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from hf_layerdrop.healing.stages import Workshop

STAGES_FILE = "healing.json"  # in the output: each stage, with its record


@dataclass(frozen=True)
class HealingStage:
    """What a model scored at one point.

    Attributes:
        name: ``whole model``, ``cut``, or the method that came last; with several rounds, which one.
        result: Its record, with the layers in the numbering of the whole model.
        seconds: How long the method took.
        note: What the method has to say, such as whether a map was kept.
    """

    name: str
    result: SubNetworkResult
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class HealingRun:
    """What `heal` leaves behind.

    Attributes:
        model: The healed model.
        stages: The whole model, the plain cut, and each method in its turn; all on the same rows.
        output_dir: The healed model as a plain checkpoint, with tokenizer, card and `healing.json`.
    """

    model: PreTrainedModel
    stages: Sequence[HealingStage]
    output_dir: Path


def heal(
    data: TaskData,
    model: str,
    arguments: TrainingArguments,
    output_dir: str | Path,
    *,
    keep_layers: KeepLayers,
    healing: HealingConfig | None = None,
    max_length: int | None = None,
    max_target_length: int | None = None,
    overwrite: bool = False,
) -> HealingRun:
    """Cut a finetuned model and win quality back, by a linear map and by training; write a plain checkpoint.

    Args:
        data: The task and its rows, from `load_task_data`; training rows serve the methods, validation rows the table.
        model: A finetuned checkpoint folder, or a model on the Hub.
        arguments: Trainer's settings for the methods that train; its learning rate should be about a fifth of that of
            the training (Minitron, arXiv 2407.14679). Nothing is saved on the way, so what they say of saving and
            their ``output_dir`` is not used.
        output_dir: Folder of the healed model; it appears whole at the end.
        keep_layers: The layers to keep.
        healing: What is done, in which order; by default the map alone.
        max_length: Inputs of more tokens are cut; None for what is usual for the task.
        max_target_length: The same for texts that are generated.
        overwrite: Replace an existing output folder.

    Raises:
        LayerDropError: One of its kinds, if the data, the model, a setting or the output folder is not usable.
    """
    from hf_layerdrop.architectures.stacks import depths_of
    from hf_layerdrop.healing.stages import Workshop
    from hf_layerdrop.training.finetuned import load_finetuned

    output_dir, healing = Path(output_dir), healing or HealingConfig()
    _check(data, arguments, healing)
    check_replaceable(output_dir, overwrite)
    check_writable(output_dir)
    check_apart(output_dir, model)
    network, tokenizer, encoded = load_finetuned(
        model, data, max_length=max_length, max_target_length=max_target_length
    )
    _check_model(network, data.task, model)
    depths = depths_of(network)
    keep_layers = resolve(keep_layers, depths, partial(read_recommended, model))
    cuts = planned_cuts(parse_keep_layers(keep_layers, depths), depths, healing)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(encoded, tokenizer, arguments, healing, Path(folder))
        healed, stages, done = _rounds(workshop, network, cuts, healing)
        _note(healed, cuts[-1], keep_layers, done, data)
        own = _in_own_numbers(stages[-1].result)
        extras = Extras([stages[0].result, stages[-1].result], False, tokenizer, MeasuredOn(**measured_on(data)))
        with whole_folder(output_dir, partial(check_replaceable, output_dir, overwrite)) as new:
            write_checkpoint(healed, new, output_dir.resolve().name, find_source(model, None, {}), extras)
            write_results([own], new / RESULTS_FILE)
            (new / STAGES_FILE).write_text(json.dumps([_as_json(stage) for stage in stages], indent=1) + "\n")
        note_recommended(output_dir, [own], workshop.trainer_of(healed), encoded)
    return HealingRun(healed, stages, output_dir)


def _check(data: TaskData, arguments: TrainingArguments, healing: HealingConfig) -> None:
    """Refuse what can be told before anything is loaded."""
    if "lora" in healing.methods:
        require("peft")
    check_arguments(arguments, data.task.metrics, data.task.name)
    if arguments.world_size > 1:
        raise HealingError(
            f"Healing runs in one process, and there are {arguments.world_size}: start it without launcher, or cut "
            "with hf-layerdrop prune and train with hf-layerdrop train."
        )
    if arguments.resume_from_checkpoint or arguments.load_best_model_at_end:
        raise HealingError(
            "Healing keeps no checkpoints to resume from or to choose of: leave resume_from_checkpoint and "
            "load_best_model_at_end out, or cut with hf-layerdrop prune and train with hf-layerdrop train."
        )
    if healing.methods != (NONE,) and (data.train is None or len(data.train) < 2):
        raise HealingError(
            f"There are no training rows, which {', '.join(healing.methods)} needs: give two or more, by "
            "load_task_data(task, train_file=..., validation_file=...)."
        )


def _check_model(network: PreTrainedModel, task: Task, name: str) -> None:
    """Refuse an adapter, and a model of other labels."""
    if getattr(network, compat.ADAPTER_LOADED.name, False):
        raise HealingError(
            f"{name!r} is an adapter of PEFT, whose cut could not be saved without its base: save what "
            "merge_and_unload() returns, and heal that."
        )
    _check_labels(network, task, name)


def _check_labels(network: PreTrainedModel, task: Task, name: str) -> None:
    wanted = task.kind.settings(task).get("id2label")
    count = len(wanted) if wanted else task.num_labels if task.is_regression else None
    if count is not None and count != network.config.num_labels:
        raise TaskError(
            f"The data of task {task.name} has {count} labels, but {name!r} has {network.config.num_labels}: give the "
            "data that it was finetuned on."
        )
    ours, its = (_named(labels) for labels in (wanted, network.config.id2label))
    if wanted and ours and its and ours != its:
        raise TaskError(
            f"The data of task {task.name} has the labels {', '.join(ours)}, in this order, but {name!r} has "
            f"{', '.join(its)}: give the data that it was finetuned on, or, if they mean the same, correct id2label in "
            "its config.json."
        )


def _named(labels: Mapping[int, str] | None) -> list[str]:
    """Return the names of labels in their order; none where they are numbers, which say nothing."""
    names = [str(name).lower() for _, name in sorted((labels or {}).items())]
    return [] if any(name.removeprefix("label_").isdigit() for name in names) else names


def _rounds(
    workshop: Workshop, whole: PreTrainedModel, cuts: Sequence[Kept], healing: HealingConfig
) -> tuple[PreTrainedModel, list[HealingStage], list[str]]:
    """Cut and heal in rounds; return the healed model, what was measured, and the methods that changed a weight."""
    from hf_layerdrop.distillation.student import student_of

    found = workshop.measure(whole, ["all", cuts[-1]])
    stages = [HealingStage("whole model", found[0]), HealingStage("cut", found[1])]
    earlier, before = {stack: tuple(layers) for stack, layers in found[0].keep_layers.items()}, whole
    done: list[str] = []
    for number, kept in enumerate(cuts, 1):
        cut = student_of(before, numbered_within(kept, earlier))
        of_round = f"round {number}: " if len(cuts) > 1 else ""
        for method in healing.methods if healing.methods != (NONE,) else ():
            start = time.perf_counter()
            cut, note, changed = workshop.heal(method, cut, before, whole, kept)
            seconds = time.perf_counter() - start
            (record,) = workshop.measure(cut)
            stages.append(HealingStage(of_round + method, replace(record, keep_layers=kept), seconds, note))
            done += [method] if changed and method not in done else []
        earlier, before = kept, cut
    return before, stages, done


def _note(model: PreTrainedModel, kept: Kept, keep_layers: KeepLayers, done: list[str], data: TaskData) -> None:
    """Note in the config what was kept of the whole model, whatever the rounds, and how it was healed."""
    model.config.hf_layerdrop = {
        **saved_provenance(model.config),
        **{name: value for name, value in choice_behind(keep_layers).items() if value is not None},
        "keep_layers": {stack: list(layers) for stack, layers in kept.items()},
        "measured_on": measured_on(data),
        **({"healed_with": done} if done else {}),
    }


def _in_own_numbers(result: SubNetworkResult) -> SubNetworkResult:
    return replace(result, keep_layers={stack: tuple(range(len(kept))) for stack, kept in result.keep_layers.items()})


def _as_json(stage: HealingStage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "seconds": round(stage.seconds, 1),
        "note": stage.note,
        "result": stage.result.to_dict(),
    }
