"""``python -m reproduction``: train the arms of a table or figure of the paper, and write its page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hf_layerdrop.cli.arguments import MAX_SEED
from hf_layerdrop.cli.console import PlainConsole
from reproduction.errors import ReproductionError
from reproduction.experiment import Experiment
from reproduction.journal import FILE, SHIPPED, SHIPPED_DEPTHS, read_journal, records_of
from reproduction.plan import plan_runs
from reproduction.reading import all_experiments, all_studies, find_experiment
from reproduction.rows import Source
from reproduction.study import MINI, PAPER, SIZES
from reproduction.variants import of_best_variants

if TYPE_CHECKING:
    from reproduction.plan import Run


def reproduce_command(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="A table or figure, such as figure-2; see --list.")
    ] = None,
    size: Annotated[str, typer.Option(metavar="NAME", help=f"{' or '.join(SIZES)}.")] = MINI,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with one folder a data set, and in it one file a split.",
            show_default="the data sets of the Hub",
        ),
    ] = None,
    train_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training rows, of one study.", show_default=False)
    ] = None,
    validation_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to measure on, of one study.", show_default=False)
    ] = None,
    studies: Annotated[
        str | None, typer.Option(metavar="A[,B]", help="Only these studies.", show_default="all of the experiment")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(metavar="A[,B]", help="Only these arms, and what they begin with.", show_default="all"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="Seeds.", show_default="those of the study")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of arms that differ in one setting only the one that was best with seed 0.")
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the journal, the models and the pages.")
    ] = Path("runs/reproduce"),
    short: Annotated[bool, typer.Option("--short", help="A few steps on a few rows, to see that all works.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build every model without memory, count, and train nothing.")
    ] = False,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Train nothing; write the page of what the journal has.")
    ] = False,
    list_all: Annotated[
        bool, typer.Option("--list", help="Show all experiments, and what their arms cost where that was measured.")
    ] = False,
) -> None:
    """Train the arms of a table or figure of the paper that are not in the journal yet, and write its page.

    Tables and figures share their arms, so with one --output nothing is trained twice. An interrupted run goes on.
    """
    console = PlainConsole()
    if list_all:
        _print_list(console)
        return
    if experiment is None:
        raise typer.BadParameter("Missing argument 'EXPERIMENT', such as figure-2; --list shows them all")
    chosen = find_experiment(experiment)
    source = Source(data_dir, train_file, validation_file)
    only, wanted = _words(studies), _words(arms)
    if best:
        shown = [all_studies()[name] for name in only or chosen.studies_at(size) if name in all_studies()]
        wanted = of_best_variants(shown, size, read_journal(output / FILE), wanted)
    runs = plan_runs(chosen, all_studies(), size=size, seeds=_seeds(seeds), arms=wanted, only=only, short=short)
    _check_source(source, runs)
    if dry_run:
        _print_estimates(console, chosen, runs, data_dir)
        return
    _reproduce(console, chosen, runs, source, output, train=not page_only, short=short)


def _reproduce(
    console: Console,
    experiment: Experiment,
    runs: Sequence[Run],
    source: Source,
    output: Path,
    *,
    train: bool,
    short: bool,
) -> None:
    from reproduction.engine import Engine
    from reproduction.page import write_pages

    main = os.environ.get("RANK", "0") == "0"  # of the processes of a launch, one speaks and writes the page

    def say(line: str) -> None:
        if main:
            console.print(line, soft_wrap=True)

    if train:
        engine = Engine(output, source, say=say)
        missing = len(engine.missing(runs))
        say(f"{experiment.name}: {len(runs)} runs, {len(runs) - missing} of them in the journal")
        engine.train(runs)
    if train and short:
        say(f"These were short runs, which say nothing of quality; {output / 'journal.jsonl'} has their records.")
        return
    if not main:
        return
    records = read_journal(output / FILE)
    if experiment.ours and not train:
        from reproduction.results_page import write_results

        names = [name for one in all_experiments().values() if one.ours for name in one.studies]
        for path in write_results([all_studies()[name] for name in names], [*read_journal(SHIPPED_DEPTHS), *records]):
            say(f"Wrote {path}")
        return
    for path in write_pages(experiment, all_studies(), runs[0].size_name, records, output / "pages"):
        say(f"Wrote {path}")


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _seeds(text: str | None) -> list[int] | None:
    words = _words(text)
    if not all(word.isascii() and word.isdigit() and int(word) <= MAX_SEED for word in words):
        raise ReproductionError(f"--seeds is {text!r}; give whole numbers from 0 to {MAX_SEED}, such as 0,1,2.")
    return [int(word) for word in words] or None


def _check_source(source: Source, runs: Sequence[Run]) -> None:
    """Find every file before anything is trained; two files are the rows of one study."""
    if not runs:
        raise ReproductionError("Nothing of that is left to run: choose other --studies, --arms or another --size.")
    names = {run.study.name for run in runs}
    if source.train_file is not None and len(names) > 1:
        raise ReproductionError(
            f"--train-file is the data of one study, but {', '.join(sorted(names))} are to be run: give --data-dir, or "
            "choose by --studies."
        )
    for data in {run.study.name: run.size.data for run in runs}.values():
        source.digest(data)


def _print_list(console: Console) -> None:
    """Show what there is; the costs are those of the journal that comes with the package."""
    records = [*read_journal(SHIPPED), *read_journal(SHIPPED_DEPTHS)]
    table = Table("experiment", "study", "arm", "mini: CPU seconds a seed", title="Experiments", title_justify="left")
    for experiment in all_experiments().values():
        for name in experiment.all_studies:
            study = all_studies()[name]
            for arm in (arm for arm in experiment.arms if arm in study.arms):
                found = records_of(records, name, arm, MINI)
                cost = f"{fmean(record['cpu_seconds'] for record in found):,.0f}" if found else "not measured"
                table.add_row(experiment.name, name, arm, cost if MINI in study.sizes else f"only {PAPER}")
    console.print(table)


def _print_estimates(console: Console, experiment: Experiment, runs: Sequence[Run], data_dir: Path | None) -> None:
    from reproduction.paper import estimate_runs, launch_line

    columns = ("run", "parameters", "of a layer", "steps", "tokens a step", "GB, estimated")
    table = Table(*columns, title=f"{experiment.name}, nothing was trained", title_justify="left")
    for found in estimate_runs(list({run.name: run for run in runs}.values())):
        layers = ", ".join(f"{stack} {count:,}" for stack, count in found.layer_parameters.items())
        numbers = (f"{found.parameters:,}", layers, f"{found.run.steps:,}", f"{found.tokens_a_step:,}")
        table.add_row(found.run.name, *numbers, f"{found.gigabytes:.1f}")
    console.print(table)
    for line in dict.fromkeys(line for run in runs for line in run.size.differs):
        console.print(f"Not as in the paper: {line}", soft_wrap=True)
    console.print(launch_line(experiment.name, runs, data_dir), soft_wrap=True)
