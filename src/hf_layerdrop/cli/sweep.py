"""hf-layerdrop sweep: quality, parameters and time at each depth of a finetuned checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_layerdrop.cli.arguments import Model, Revision, check_output, checkpoint_facts, loading_arguments
from hf_layerdrop.cli.depths import KeptByStack, parse_depths
from hf_layerdrop.cli.reports import Report, check_wanted, write_wanted
from hf_layerdrop.errors import TaskError
from hf_layerdrop.report.plot import draw_depth_plot
from hf_layerdrop.report.table import render_table, write_results
from hf_layerdrop.results import SubNetworkResult
from hf_layerdrop.tasks import (
    MAX_LENGTH,
    TASKS,
    Task,
    TaskData,
    compute_metrics_for,
    custom_task,
    find_task,
    load_task_data,
    local_files,
    padding_collator,
    tokenize,
)
from hf_layerdrop.training import load_tokenizer, measure_depths


def sweep_command(
    model: Model,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Task of GLUE: {', '.join(TASKS)}.", show_default=False)
    ] = None,
    validation_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Local validation rows: CSV, TSV, JSON or Parquet.", show_default=False),
    ] = None,
    text_columns: Annotated[
        str | None, typer.Option(metavar="A[,B]", help="Text columns of the file.", show_default=False)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Label column of the file.", show_default=False)
    ] = None,
    depths: Annotated[str, typer.Option(metavar="LIST", help="Depths to measure, such as 6,3,1.")] = "all",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for table and plot.", show_default="runs/sweep-MODEL"),
    ] = None,
    report: Report = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into the folder though it exists.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 32,
    max_length: Annotated[int, typer.Option(min=1, help="Longer inputs are cut to this many tokens.")] = MAX_LENGTH,
    revision: Revision = None,
) -> None:
    """Measure MODEL on a validation set at each depth, without finetuning: table, plot (PNG, SVG) and JSON."""
    name = Path(model).resolve().name
    folder = output or Path("runs") / f"sweep-{name}"
    check_output(folder, overwrite=overwrite)
    check_wanted(report, overwrite=overwrite)
    columns = [column.strip() for column in text_columns.split(",")] if text_columns else []
    config, stacks = checkpoint_facts(model, revision=revision, allow_pickle=False)
    chosen = choose_task(task, columns, label_column, config)
    local_files(chosen, None, validation_file, train=False)
    sub_networks = parse_depths(depths, stacks)

    data = load_task_data(
        chosen, validation_file=validation_file, text_columns=columns, label_column=label_column, train=False
    )
    loading = loading_arguments(model, revision=revision, allow_pickle=False)
    results = _measure(model, data, sub_networks, batch_size, max_length, loading)
    _write(folder, results, data.task, title=name)
    written = write_wanted(report, model, config, revision, data.task, stacks, results={name: results})
    console = Console()
    console.print(render_table(results, title=f"{name} on {data.task.name}, cut without finetuning"))
    for path in (folder, *written):
        console.print(f"Wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _measure(
    model: str,
    data: TaskData,
    sub_networks: Sequence[KeptByStack],
    batch_size: int,
    max_length: int,
    loading: Mapping[str, Any],
) -> list[SubNetworkResult]:
    """Load the model once and evaluate its sub-networks on every validation set of the task."""
    from torch import accelerator
    from transformers import Trainer, TrainingArguments

    from hf_layerdrop.modeling import load_checkpoint

    tokenizer = load_tokenizer(model, **loading)
    encoded = tokenize(data, tokenizer, max_length=max_length)
    with tempfile.TemporaryDirectory() as unused:  # Trainer makes its output folder, whatever it is used for
        trainer = Trainer(
            model=load_checkpoint(model, **loading),
            args=TrainingArguments(
                unused,
                per_device_eval_batch_size=batch_size,
                dataloader_pin_memory=accelerator.is_available(),  # without one, torch warns
                report_to="none",
            ),
            data_collator=padding_collator(tokenizer),
            compute_metrics=compute_metrics_for(data.task),
        )
        return measure_depths(trainer, encoded, sub_networks)


def choose_task(name: str | None, columns: Sequence[str], label_column: str | None, config: Mapping[str, Any]) -> Task:
    """Find the task, or describe the user's own by the classes of the model, and check that it fits the head."""
    architecture = next(iter(config.get("architectures") or ["no architecture"]))
    if not architecture.endswith("ForSequenceClassification"):
        raise TaskError(
            f"The checkpoint is a {architecture}, but sweep measures classifiers "
            "(...ForSequenceClassification): finetune it first, for example with hf-layerdrop train."
        )
    labels = [str(label) for label in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()]
    if name is None:
        known = [] if all(label.startswith("LABEL_") for label in labels) else labels
        return custom_task(columns, label_column=label_column or "label", label_names=known)
    task = find_task(name)
    if task.num_labels != len(labels):
        raise TaskError(
            f"Task {task.name} has {task.num_labels} labels, but the checkpoint has {len(labels)} "
            f"({', '.join(labels[:5])}): give the task that it was finetuned on."
        )
    return task


def _write(folder: Path, results: Sequence[SubNetworkResult], task: Task, *, title: str) -> None:
    """Write table and plot; a new folder appears whole or not at all, in an old one only these are replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write_results(results, unfinished / "depth_results.json")
        draw_depth_plot({title: results}, task.headline, unfinished / "depth")
        if folder.exists():
            for file in unfinished.iterdir():
                file.replace(folder / file.name)
        else:
            unfinished.chmod(0o755)  # mkdtemp makes it private, unlike any other folder a user writes
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
