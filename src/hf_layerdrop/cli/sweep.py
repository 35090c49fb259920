"""hf-layerdrop sweep: quality, parameters and time at each depth of a finetuned checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.cli.arguments import (
    DatasetConfig,
    DatasetName,
    LabelColumn,
    MaxLength,
    MaxTargetLength,
    Model,
    NumBeams,
    Revision,
    TaskName,
    TextColumns,
    TrustRemoteCode,
    check_output,
    checkpoint_facts,
    listed,
    loading_arguments,
    require_tokenizer,
)
from hf_layerdrop.cli.console import PlainConsole, console_of_launch, drawn, print_next
from hf_layerdrop.cli.depths import KeptByStack, parse_depths
from hf_layerdrop.cli.judging import ChatTemplate, FewShot, Limit, LmEval, LmEvalFolder, LmEvalTasks
from hf_layerdrop.cli.recall import Asked, recalled
from hf_layerdrop.cli.reports import Measured, Report, check_wanted, print_signatures, write_wanted
from hf_layerdrop.errors import TaskError, require
from hf_layerdrop.results.plot import draw_depth_plot
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_kept, measured_rows, render_table, write_results
from hf_layerdrop.samplers.keep_layers import KeepLayers, format_keep_layers
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import custom_task, load_task, with_dataset
from hf_layerdrop.tasks.task import Task, TaskData
from hf_layerdrop.training.recommend import note_recommended
from hf_layerdrop.training.train import RESULTS_FILE, keep_records, measure_depths, possible

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

SEQUENCES = "SequenceClassification"


def sweep_command(
    model: Model,
    task: TaskName = None,
    validation_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Local validation rows: CSV, TSV, JSON or Parquet.", show_default=False),
    ] = None,
    dataset: DatasetName = None,
    dataset_config: DatasetConfig = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    depths: Annotated[
        str, typer.Option(metavar="LIST", help="Depths to measure, such as 6,3,1; of one stack: decoder=6,3.")
    ] = "all",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for table and plot.", show_default="runs/sweep-MODEL"),
    ] = None,
    report: Report = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into the folder though it exists.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 32,
    max_length: MaxLength = None,
    max_target_length: MaxTargetLength = None,
    num_beams: NumBeams = None,
    lm_eval: LmEvalTasks = None,
    lm_eval_folder: LmEvalFolder = None,
    few_shot: FewShot = None,
    limit: Limit = None,
    chat_template: ChatTemplate = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure MODEL on a validation set at each depth, without finetuning: table, plot (PNG, SVG) and JSON.

    Records are written as they come. Under accelerate launch or torchrun, processes divide the depths; --lm-eval takes
    one process.
    """
    name = Path(model).resolve().name
    folder = output or Path("runs") / f"sweep-{name}"
    check_output(folder, overwrite=overwrite)
    check_wanted(report, overwrite=overwrite)
    config, stacks = checkpoint_facts(model, revision=revision, allow_pickle=False, trust_remote_code=trust_remote_code)
    sub_networks = parse_depths(depths, stacks, partial(read_recommended, model, revision=revision))
    console = console_of_launch()
    columns, lengths = listed(text_columns), (max_length, max_target_length, num_beams)
    asked = Asked(task, validation_file, dataset, dataset_config, columns, label_column, *lengths)
    harness = LmEval(listed(lm_eval), lm_eval_folder, few_shot, limit, chat_template)
    by_harness = harness.check(asked)
    asked = asked if by_harness else recalled(asked, model, console)
    chosen = None if by_harness else asked_task(asked, config)
    require_tokenizer(model, config)
    require("matplotlib")

    loading = loading_arguments(model, revision=revision, allow_pickle=False, trust_remote_code=trust_remote_code)
    if chosen is None:
        keep = partial(keep_records, folder / RESULTS_FILE)
        leave_out = partial(_possible, console=console) if depths.strip() == "all" else None
        results = harness.measure(model, sub_networks, loading, (batch_size, max_length), keep, leave_out)
        swept = Swept(results, harness.measured(results, config), ", ".join(harness.tasks))
    else:
        sizes = Sizes(batch_size, asked.max_length, asked.max_target_length, asked.num_beams)
        found = _by_task(model, asked_data(asked, chosen), sub_networks, sizes, loading, folder, depths, console)
        if found is None:  # another process of the launch writes
            return
        swept = found
    results, metric = swept.results, swept.measured.metric
    told = ", ".join(filter(None, (f"{name} on {swept.what}", measured_rows(results))))
    console.print(render_table(results, title=f"{told}, cut without finetuning"))
    print_signatures(console, swept.signatures)
    write_results(results, folder / RESULTS_FILE)
    drawn(console, lambda: draw_depth_plot({name: results}, metric, folder / "depth"))
    written = write_wanted(report, model, config, revision, swept.measured, stacks, results={name: results})
    for line in (*(f"Wrote {path}" for path in (folder, *written)), *([swept.noted] if swept.noted else [])):
        console.print(line, soft_wrap=True)
    if half := [result for result in results if 2 * result.depth <= sum(stacks.values())]:
        kept = format_keep_layers(max(half, key=lambda result: result.depth).keep_layers)
        print_next(console, "prune", model, "--keep-layers", kept, "--output", f"{folder}-pruned")


@dataclass(frozen=True)
class Swept:
    """What a sweep found, and how it is told."""

    results: list[SubNetworkResult]
    measured: Measured
    what: str
    noted: str | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)


def _by_task(
    model: str,
    data: TaskData,
    sub_networks: list[KeptByStack],
    sizes: Sizes,
    loading: Mapping[str, Any],
    folder: Path,
    depths: str,
    console: PlainConsole,
) -> Swept | None:
    """Measure on the validation rows of a task; None on a process that does not write."""
    with evaluating_trainer(model, data, sizes, loading) as (trainer, encoded):
        if depths.strip() == "all":  # and none of them asked for by name
            model_in_use = trainer.accelerator.unwrap_model(trainer.model)
            sub_networks = _possible(sub_networks, model_in_use, console)
        writes = trainer.is_world_process_zero()
        keep = partial(keep_records, folder / RESULTS_FILE if writes else None)
        results = measured_together(trainer, encoded, sub_networks, done=keep)
        if not writes:
            return None
        noted = note_recommended(model, results, trainer, encoded)
    signatures = getattr(trainer.compute_metrics, "signatures", {})
    return Swept(results, Measured.of(data.task), data.task.name, noted, signatures)


def measured_together(
    trainer: Trainer,
    data: TaskData,
    depths: Sequence[KeepLayers],
    *,
    done: Callable[[list[SubNetworkResult]], None] | None = None,
) -> list[SubNetworkResult]:
    """Measure as one process would, the sub-networks divided among the processes of a launch."""
    from hf_layerdrop.evaluation.ranks import ranks_of_launch

    with ranks_of_launch(trainer) as ranks:
        return measure_depths(trainer, data, depths, done=done, ranks=ranks)


def _possible(sub_networks: Sequence[KeptByStack], model: PreTrainedModel, console: PlainConsole) -> list[KeptByStack]:
    """Leave out what the model cannot be cut to, and say so."""
    found = possible(sub_networks, model)
    for kept in (one for one in sub_networks if one not in found):
        console.print(f"Left out: layers {format_kept(kept)}, to which the model cannot be cut.")
    return found


@dataclass(frozen=True)
class Sizes:
    """How much is measured at once, and how long texts are; None for what is usual for the task."""

    batch_size: int
    max_length: int | None = None
    max_target_length: int | None = None
    num_beams: int | None = None


def asked_task(asked: Asked, config: Mapping[str, Any]) -> Task:
    """Find the task that is asked for, with its data set."""
    task = choose_task(asked.task, asked.text_columns, asked.label_column, config)
    return with_dataset(task, asked.dataset, asked.dataset_config)


def asked_data(asked: Asked, task: Task, files: Sequence[Path] | None = None) -> TaskData:
    """Load the validation rows that are asked for, or those of other files."""
    return load_task_data(
        task,
        validation_file=files or asked.validation_file,
        text_columns=asked.text_columns,
        label_column=asked.label_column,
        train=False,
    )


@contextmanager
def evaluating_trainer(
    model: str, data: TaskData, sizes: Sizes, loading: Mapping[str, Any]
) -> Iterator[tuple[Trainer, TaskData]]:
    """Load the model into a Trainer that only evaluates, and encode the validation sets."""
    from torch import accelerator
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    from hf_layerdrop.training.finetuned import load_finetuned
    from hf_layerdrop.training.trainers import build_trainer, generation_flags

    network, tokenizer, encoded = load_finetuned(
        model, data, max_length=sizes.max_length, max_target_length=sizes.max_target_length, loading=loading
    )
    with tempfile.TemporaryDirectory() as unused:  # Trainer makes its output folder, whatever it is used for
        arguments = (Seq2SeqTrainingArguments if data.task.generation else TrainingArguments)(
            unused,
            per_device_eval_batch_size=sizes.batch_size,
            dataloader_pin_memory=accelerator.is_available(),  # without one, torch warns
            use_cpu=not accelerator.is_available(),  # else Trainer does not see the other processes of a launch
            report_to="none",
            **generation_flags(data.task, sizes.max_target_length, sizes.num_beams),
        )
        yield build_trainer(encoded, network, tokenizer, arguments), encoded


def choose_task(name: str | None, columns: Sequence[str], label_column: str | None, config: Mapping[str, Any]) -> Task:
    """Find the task, or describe the user's own by the classes of the model, and check that it fits the head."""
    architecture = next(iter(config.get("architectures") or ["no architecture"]))
    named = load_task(name) if name else None
    if named is not None and named.head != SEQUENCES:
        return _with_labels_of(named, config)
    if not architecture.endswith(f"For{SEQUENCES}"):
        raise TaskError(
            f"The checkpoint is a {architecture}, but without a --task of another kind classifiers of texts "
            f"(...For{SEQUENCES}) are measured: finetune it first, for example with hf-layerdrop train; models of "
            "images or speech are measured from Python, with evaluate_depths(trainer, depths=...)."
        )
    labels = [str(label) for label in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()]
    if named is None:
        known = [] if all(label.startswith("LABEL_") for label in labels) else labels
        return custom_task(columns, label_column=label_column or "label", label_names=known)
    task = named
    if task.num_labels != len(labels):
        raise TaskError(
            f"Task {task.name} has {task.num_labels} labels, but the checkpoint has {len(labels)} "
            f"({', '.join(labels[:5])}): give the task that it was finetuned on."
        )
    return task


def _with_labels_of(task: Task, config: Mapping[str, Any]) -> Task:
    """Take the names of the classes from the model, where the task has such."""
    labels = tuple(map(str, (config.get("id2label") or {}).values()))
    if task.kind.name_labels is None or not labels or all(label.startswith("LABEL_") for label in labels):
        return task
    return task.kind.with_labels(task, labels)
