"""hf-layerdrop search: choose the layers of a finetuned checkpoint by measuring sub-networks of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hf_layerdrop.checkpoints.outputs import check_above, check_writable
from hf_layerdrop.cli.arguments import (
    DatasetConfig,
    DatasetName,
    LabelColumn,
    MaxLength,
    MaxTargetLength,
    Model,
    NumBeams,
    Revision,
    Seed,
    TaskName,
    TextColumns,
    TrustRemoteCode,
    checked_model,
    listed,
    loading_arguments,
    require_tokenizer,
)
from hf_layerdrop.cli.budgets import check_budgets, read_count
from hf_layerdrop.cli.console import console_of_launch, print_next
from hf_layerdrop.cli.recall import Asked, recalled
from hf_layerdrop.cli.reports import Measured, Report, check_wanted, write_wanted
from hf_layerdrop.cli.sweep import Sizes, asked_data, asked_task, evaluating_trainer, measured_together
from hf_layerdrop.errors import OutputExistsError, TaskError
from hf_layerdrop.results.table import format_kept
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.search.space import Space, parse_depth
from hf_layerdrop.search.strategies import (
    MANY_SETS,
    MAX_SETS,
    STRATEGIES,
    SWAP_ROUNDS,
    check_settings,
    check_space,
    find_strategy,
)
from hf_layerdrop.tasks.task import MAX_LENGTH, Task, TaskData

if TYPE_CHECKING:
    from transformers import Trainer

TEST = "test"


def search_command(
    model: Model,
    depth: Annotated[
        str | None,
        typer.Option(metavar="N", help="Layers to keep; by stack: 'encoder=6;decoder=3'.", show_default=False),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Or: most milliseconds of a forward on this machine.", show_default=False),
    ] = None,
    max_parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Or: most parameters, such as 60M.", show_default=False)
    ] = None,
    max_size_mb: Annotated[
        float | None, typer.Option(metavar="MB", help="Or: largest size of the weights.", show_default=False)
    ] = None,
    strategy: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(STRATEGIES)}.")] = "beam",
    task: TaskName = None,
    validation_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Local rows to search on: CSV, TSV, JSON or Parquet.", show_default=False),
    ] = None,
    test_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Local rows to score the winner on.",
            show_default="half of the validation rows, held out of the search",
        ),
    ] = None,
    dataset: DatasetName = None,
    dataset_config: DatasetConfig = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A metric of the task, or loss.", show_default="the task's first"),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Selection file to write; --keep-layers reads it.")
    ] = Path("selection.json"),
    report: Report = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files if they exist.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where every score is kept; the same search goes on from it.",
            show_default="OUTPUT.journal",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="N", help="Width of the beam.", show_default=False, min=1)
    ] = None,
    swaps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most rounds of swapping single layers after the beam.",
            show_default=f"{SWAP_ROUNDS} where there are more than {MANY_SETS:,} sets, else 0",
            min=0,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Random sets to score, of strategy random.", show_default=False, min=1),
    ] = None,
    max_sub_networks: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most sets of strategy exhaustive.", show_default=f"{MAX_SETS:,}", min=1),
    ] = None,
    memory_limit_mb: Annotated[float, typer.Option(min=1, help="Most memory for shared layer outputs.")] = 1024,
    latency_batch_size: Annotated[int, typer.Option(min=1, help="Rows of the input that is timed.")] = 1,
    latency_length: Annotated[int, typer.Option(min=1, help="Tokens of the input that is timed.")] = MAX_LENGTH,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 32,
    max_length: MaxLength = None,
    max_target_length: MaxTargetLength = None,
    num_beams: NumBeams = None,
    seed: Seed = 0,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Choose which layers of MODEL to keep, at a depth or within a budget, by what sub-networks score.

    Under accelerate launch or torchrun, processes divide the candidates.
    """
    name = find_strategy(strategy)
    settings = {"width": width, "swaps": swaps, "samples": samples, "max_sub_networks": max_sub_networks}
    asked: dict[str, Any] = {setting: value for setting, value in settings.items() if value is not None}
    check_settings(name, asked)
    budgets: dict[str, Any] = {
        "max_latency_ms": max_latency_ms,
        "max_parameters": read_count(max_parameters),
        "max_size_mb": max_size_mb,
    }
    stored = checked_model(model, revision=revision, trust_remote_code=trust_remote_code)
    config, stacks = stored.headers.config, stored.depths
    check_budgets(depth, budgets, stored)
    if depth is not None:
        check_space(name, Space(stacks, parse_depth(depth, stacks)), max_sub_networks or MAX_SETS)
    journal = journal or output.with_name(f"{output.name}.journal")
    check_above(output)
    if output.exists() and not overwrite:
        raise OutputExistsError(f"The selection file {str(output)!r} exists: give another by --output, or --overwrite.")
    for file in (output, journal):
        check_writable(file)
    check_wanted(report, overwrite=overwrite)
    console = console_of_launch()
    columns, lengths = listed(text_columns), (max_length, max_target_length, num_beams)
    asked_for = Asked(task, validation_file, dataset, dataset_config, columns, label_column, *lengths)
    asked_for = recalled(asked_for, model, console)
    chosen = asked_task(asked_for, config)
    require_tokenizer(model, config)
    _check_metric(metric, chosen)
    rows = [asked_data(asked_for, chosen, files) for files in (None, *([test_file] if test_file else []))]
    loading = loading_arguments(model, revision=revision, allow_pickle=False, trust_remote_code=trust_remote_code)
    sizes = Sizes(batch_size, asked_for.max_length, asked_for.max_target_length, asked_for.num_beams)
    with evaluating_trainer(model, _together(rows), sizes, loading) as (trainer, encoded):
        from hf_layerdrop.search.search import search_layers

        selection = search_layers(
            trainer,
            next(iter(encoded.validation.values())),
            test_dataset=encoded.validation.get(TEST),
            metric=metric or rows[0].task.headline,
            strategy=name,
            depth=depth,
            journal=journal,
            memory_limit_mb=memory_limit_mb,
            latency_batch_size=latency_batch_size,
            latency_length=latency_length,
            seed=seed,
            **budgets,
            **asked,
        )
        show(console, selection, model)  # first, whatever becomes of the files
        writes = trainer.is_world_process_zero()
        if writes:
            selection.write(output, overwrite=overwrite)
        noted = _note(model, selection, trainer, encoded)
    if not writes:
        return
    measured = Measured.of(rows[0].task)
    for path in (output, *write_wanted(report, model, config, revision, measured, stacks, selection=selection)):
        console.print(f"Wrote {path}", soft_wrap=True)
    if noted:
        console.print(noted, soft_wrap=True)
    print_next(console, "prune", model, "--keep-layers", output, "--output", f"{Path(model).name}-pruned")


def _note(model: str, selection: Selection, trainer: Trainer, encoded: TaskData) -> str | None:
    """Measure the choice and the whole model as sweep would, on all validation rows, and note it beside the model."""
    if not Path(model).is_dir():
        return None
    from hf_layerdrop.training.recommend import note_recommended

    data = replace(encoded, validation={name: rows for name, rows in encoded.validation.items() if name != TEST})
    results = measured_together(trainer, data, ["all", selection])
    if not trainer.is_world_process_zero():
        return None
    chosen_by = {**selection.keep_layers, "strategy": selection.strategy}
    return note_recommended(model, results, trainer, data, chosen_by=chosen_by)


def show(console: Console, selection: Selection, model: str) -> None:
    """Print what was chosen, and what it cost to find."""
    table = Table(title=f"{Path(model).name}, {selection.strategy}", title_justify="left", show_header=False, box=None)
    for name, value in _lines(selection):
        table.add_row(name, value)
    console.print(table)
    for warning in selection.warnings:
        console.print(f"Warning: {warning}", style="yellow")


def _lines(selection: Selection) -> Iterator[tuple[str, str]]:
    yield "kept layers", format_kept(selection.keep_layers)
    score = f"{selection.score:.4f} (whole model {selection.whole_score:.4f})"
    if selection.test_score is not None and selection.whole_test_score is not None:
        separate = f"{selection.test_score:.4f} on separate data (whole model {selection.whole_test_score:.4f})"
        score = f"{separate}; {score} on the data of the search"
    yield selection.metric, score
    time = "" if selection.latency_ms is None else f", {selection.latency_ms:.3g} ms a forward"
    yield "size", f"{selection.parameters:,} parameters, {selection.size_mb:.4g} MB{time}"
    yield "as good", selection.as_good
    how = "a batch, prefixes shared" if selection.shared else "in all, run one by one"
    cost = f"{selection.evaluations:,} sub-networks, {selection.layer_forwards:,} layer forwards {how}"
    yield "cost", cost + (f"; {selection.from_journal:,} from the journal" if selection.from_journal else "")
    for neighbour in selection.outside:
        time = "" if neighbour.latency_ms is None else f", {neighbour.latency_ms:.3g} ms"
        kept = sum(len(layers) for layers in neighbour.keep_layers.values())
        costs = f"{neighbour.parameters:,} parameters, {neighbour.size_mb:.4g} MB{time}"
        yield "just outside", f"{kept} layers: {neighbour.score:.4f}, {costs}"


def _check_metric(metric: str | None, task: Task) -> None:
    known = (*task.metrics, "loss", "perplexity")
    if metric is not None and metric not in known:
        raise TaskError(f"--metric is {metric!r}, but task {task.name} has {', '.join(known)}: take one of these.")


def _together(rows: Sequence[TaskData]) -> TaskData:
    """Join the data of the search and the separate data, of which the first validation set is used, into one."""
    separate = [(TEST, next(iter(part.validation.values()))) for part in rows[1:]]
    return replace(rows[0], validation=dict([*rows[0].validation.items(), *separate]))
