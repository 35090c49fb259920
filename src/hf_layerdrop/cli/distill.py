"""hf-layerdrop distill: train a shallow student to imitate its finetuned teacher, and write a plain checkpoint."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.cli.arguments import (
    LabelColumn,
    Model,
    TextColumns,
    TrainFile,
    ValidationFiles,
    check_output,
    checkpoint_facts,
    listed,
    require_tokenizer,
)
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.cli.sweep import choose_task
from hf_layerdrop.cli.training_flags import DEFAULTS, HelpAll, option_names, parse_training_arguments
from hf_layerdrop.distillation.config import DistillationConfig, check_classification, student_layers
from hf_layerdrop.results.table import format_kept, format_parameters, metric_names
from hf_layerdrop.samplers.keep_layers import resolve
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import TASKS, load_task
from hf_layerdrop.tasks.task import MAX_LENGTH
from hf_layerdrop.training.train import check_output as check_checkpoints

if TYPE_CHECKING:
    from hf_layerdrop.distillation.run import DistillationRun


def distill_command(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist yet.")],
    keep_layers: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The layers that the student begins with, as in prune: 3, ::2, 'encoder=6;decoder=3'.",
            show_default="every other layer, spread evenly",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Task of GLUE: {', '.join(TASKS)}; or sst2-sample.", show_default=False),
    ] = None,
    train_file: TrainFile = None,
    validation_file: ValidationFiles = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    temperature: Annotated[
        float, typer.Option(help="Teacher and student are compared at this temperature.")
    ] = DistillationConfig.temperature,
    soft_weight: Annotated[
        float, typer.Option(help="Weight of the teacher's predictions.")
    ] = DistillationConfig.soft_weight,
    hidden_weight: Annotated[
        float, typer.Option(help="Weight of the teacher's hidden states.")
    ] = DistillationConfig.hidden_weight,
    hard_weight: Annotated[float, typer.Option(help="Weight of the labels.")] = DistillationConfig.hard_weight,
    max_length: Annotated[int, typer.Option(min=1, help="Longer inputs are cut to this many tokens.")] = MAX_LENGTH,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    help_all: HelpAll = False,
) -> None:
    """Cut a student out of MODEL, a finetuned checkpoint, and train it on the task to imitate the whole model.

    Every flag of TrainingArguments works too (see --help-all). A run that was stopped goes on with
    --resume_from_checkpoint last.
    """
    settings = DistillationConfig(temperature, soft_weight, hidden_weight, hard_weight)
    if task:
        check_classification(load_task(task))
    check_output(output, overwrite=overwrite)
    columns = listed(text_columns)
    config, stacks = checkpoint_facts(model, revision=None, allow_pickle=False)
    chosen = choose_task(task, columns, label_column, config)
    student_layers(resolve(keep_layers, stacks, partial(read_recommended, model)), stacks)
    require_tokenizer(model, config)
    quiet = {"eval_strategy": "no", "output_dir": str(_own_checkpoints(output))}
    arguments = parse_training_arguments(context.args, defaults={**DEFAULTS, **quiet}, options=option_names(context))
    checkpoints = Path(str(arguments.output_dir))
    check_checkpoints(checkpoints, overwrite=overwrite, resume=arguments.resume_from_checkpoint)

    from hf_layerdrop.distillation.run import distill

    data = load_task_data(
        chosen,
        train_file=train_file,
        validation_file=validation_file,
        text_columns=columns,
        label_column=label_column,
    )
    run = distill(
        data,
        model,
        arguments,
        output,
        keep_layers=keep_layers,
        distillation=settings,
        max_length=max_length,
        overwrite=overwrite,
    )
    if run.trainer.is_world_process_zero():
        if checkpoints == _own_checkpoints(output):
            shutil.rmtree(checkpoints, ignore_errors=True)
        _print(PlainConsole(), run, f"{Path(model).resolve().name} on {data.task.name}")


def _own_checkpoints(output: Path) -> Path:
    """Return where the checkpoints go until the student is written, if --output_dir does not say."""
    return output.with_name(f"{output.name}-checkpoints")


def _print(console: Console, run: DistillationRun, title: str) -> None:
    records = {"teacher": run.teacher, "cut, untrained": run.cut, "distilled student": run.student}
    names = metric_names(list(records.values()))
    table = Table(title=title, title_justify="left")
    for column in ("model", "layers", "parameters", *names):
        table.add_column(column)
    for name, record in records.items():
        values = [f"{record.metrics[metric]:.4f}" for metric in names]
        table.add_row(name, format_kept(record.keep_layers), format_parameters(record.parameters), *values)
    console.print(table)
    forwards = run.layer_forwards
    lines = (
        f"Layer forwards in training: {forwards.total:,} ({forwards.teacher:,} of the teacher, {forwards.student:,} of "
        "the student)",
        f"Wrote {run.output_dir}",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
