"""hf-layerdrop heal: cut a finetuned model, win quality back, and write a plain checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_layerdrop.checkpoints.outputs import check_apart
from hf_layerdrop.checkpoints.recommended_file import read_recommended
from hf_layerdrop.checkpoints.strangers import LARGEST, Unreadable, read_json
from hf_layerdrop.cli.arguments import (
    DatasetConfig,
    DatasetName,
    KeepLayersSpec,
    LabelColumn,
    MaxLength,
    MaxTargetLength,
    Model,
    NumBeams,
    TaskName,
    TextColumns,
    TrainFile,
    ValidationFiles,
    check_output,
    checkpoint_facts,
    listed,
    require_tokenizer,
)
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.cli.recall import Asked, recalled
from hf_layerdrop.cli.sweep import asked_task
from hf_layerdrop.cli.training_flags import DEFAULTS, HelpAll, option_names, parse_training_arguments
from hf_layerdrop.errors import HealingError, require
from hf_layerdrop.healing.config import METHODS, NONE, HealingConfig, planned_cuts
from hf_layerdrop.results.fitting_table import FittingTable
from hf_layerdrop.results.table import format_kept, format_parameters, format_score, measured_rows, metric_names
from hf_layerdrop.samplers.keep_layers import parse_keep_layers, resolve
from hf_layerdrop.tasks.data import load_task_data

if TYPE_CHECKING:
    from hf_layerdrop.healing.run import HealingRun, HealingStage

SHARE_OF_PEAK = 0.2  # of the training's learning rate (Minitron, arXiv 2407.14679)
STEPS = 300
_OF_CHECKPOINTS = ("output_dir", "save_strategy", "save_steps", "resume_from_checkpoint", "load_best_model_at_end")


def heal_command(
    context: typer.Context,
    model: Model,
    keep_layers: KeepLayersSpec,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist yet.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"What is done after the cut, in this order: {', '.join(METHODS)}, such as map,distill; or {NONE}.",
        ),
    ] = "map",
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cut in so many steps, healing after each.",
            show_default="2 where over half of the layers go and a method trains, else 1",
        ),
    ] = None,
    task: TaskName = None,
    train_file: TrainFile = None,
    validation_file: ValidationFiles = None,
    dataset: DatasetName = None,
    dataset_config: DatasetConfig = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    map_rows: Annotated[
        int, typer.Option(metavar="N", help="Training rows that a map is fitted on; as many others try it.")
    ] = HealingConfig.rows,
    max_length: MaxLength = None,
    max_target_length: MaxTargetLength = None,
    num_beams: NumBeams = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    help_all: HelpAll = False,
) -> None:
    """Cut MODEL, a finetuned checkpoint, win quality back, and measure it before and after on the same rows.

    ``map`` trains nothing: it puts a linear map in the place of the removed layers. The others take 300 steps at a
    fifth of the learning rate of the training, LoRA at ten times that; every flag of TrainingArguments works too (see
    --help-all).
    """
    healing = HealingConfig(tuple(listed(method)), rounds=rounds, rows=map_rows)
    if "lora" in healing.methods:
        require("peft")
    check_output(output, overwrite=overwrite)
    check_apart(output, model)
    columns, console = listed(text_columns), PlainConsole()
    config, stacks = checkpoint_facts(model, revision=None, allow_pickle=False)
    lengths = (max_length, max_target_length, num_beams)
    asked = Asked(task, validation_file, dataset, dataset_config, columns, label_column, *lengths)
    asked = recalled(asked, model, console)
    if asked.validation_file and not validation_file and not train_file and healing.methods != (NONE,):
        raise HealingError(
            f"{model} was measured on local files, but healing needs training rows as well: give them by --train-file."
        )
    chosen = asked_task(asked, config)
    spec = resolve(keep_layers, stacks, partial(read_recommended, model))
    planned_cuts(parse_keep_layers(spec, stacks), stacks, healing)
    require_tokenizer(model, config)
    given = _given_flags(context.args)
    quiet: dict[str, str | int] = {"output_dir": "unused", "eval_strategy": "no", "report_to": "none"}
    if "num_train_epochs" not in given:  # which max_steps would overrule
        quiet["max_steps"] = STEPS
    rate = SHARE_OF_PEAK * (peak_learning_rate(model) or DEFAULTS["learning_rate"])
    arguments = parse_training_arguments(
        context.args,
        defaults={**DEFAULTS, "learning_rate": rate, **quiet},
        options=option_names(context),
        generates=chosen.generation is not None,
    )

    from hf_layerdrop.healing.run import heal
    from hf_layerdrop.training.trainers import generation_flags

    for field, value in generation_flags(chosen, asked.max_target_length, asked.num_beams).items():
        setattr(arguments, field, value)
    data = load_task_data(
        chosen,
        train_file=train_file,
        validation_file=asked.validation_file,
        text_columns=asked.text_columns,
        label_column=asked.label_column,
        train=healing.methods != (NONE,),
    )
    run = heal(
        data,
        model,
        arguments,
        output,
        keep_layers=keep_layers,
        healing=healing,
        max_length=asked.max_length,
        max_target_length=asked.max_target_length,
        overwrite=overwrite,
    )
    _print(console, run, f"{Path(model).resolve().name} on {data.task.name}")


def peak_learning_rate(checkpoint: str) -> float | None:
    """Return the largest learning rate that the Trainer of a checkpoint folder logged; None if nobody knows."""
    try:
        state = read_json(Path(checkpoint) / "trainer_state.json", LARGEST)
        logged = [one.get("learning_rate") for one in state["log_history"]]
    except (Unreadable, TypeError, KeyError, AttributeError):  # none, or anyone's
        return None
    rates = [float(rate) for rate in logged if isinstance(rate, Real) and 0 < float(rate) < 1]
    return max(rates, default=None)


def _given_flags(words: Sequence[str]) -> set[str]:
    """Return which flags of TrainingArguments are given; refuse those of checkpoints."""
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    if refused := [name for name in _OF_CHECKPOINTS if name in given]:
        raise HealingError(
            f"--{refused[0]} is not taken: healing keeps no checkpoints on its way, and --output names its folder; for "
            "a long training, cut with hf-layerdrop prune and use hf-layerdrop train."
        )
    return given


def _print(console: PlainConsole, run: HealingRun, title: str) -> None:
    records = [stage.result for stage in run.stages]
    names = metric_names(records)
    columns = ("model", "layers", "parameters", *names, "seconds")
    rows = [_row(stage, names) for stage in run.stages]
    shown = ", ".join(filter(None, (title, measured_rows(records))))
    spare = [*(name for name in names[1:] if name.startswith("loss")), "seconds", "parameters"]
    console.print(FittingTable(columns, rows, texts=("model", "layers"), spare=spare, title=shown))
    notes = [f"{stage.name}: {stage.note}" for stage in run.stages if stage.note]
    name = run.output_dir.resolve().name
    following = f"hf-layerdrop push {run.output_dir} --keep-layers all --repo-id YOUR_NAME/{name}"
    for line in (*notes, f"Wrote {run.output_dir}", f"Next: {following}"):
        console.print(line, soft_wrap=True)


def _row(stage: HealingStage, names: Sequence[str]) -> list[str]:
    record = stage.result
    scores = [format_score(record, name) for name in names]
    seconds = f"{stage.seconds:.0f}" if stage.seconds else ""
    return [stage.name, format_kept(record.keep_layers), format_parameters(record.parameters), *scores, seconds]
