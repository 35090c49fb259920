"""hf-layerdrop demo: the whole story on embedded data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hf_layerdrop.cli.arguments import Seed, check_output, checkpoint_facts
from hf_layerdrop.cli.console import PlainConsole, drawn
from hf_layerdrop.errors import LayerDropConfigError, require

SHORT_STEPS = 200

_SENTENCE_WIDTH = 52
_SAMPLE = "leave --task out for the sample of SST-2 that comes along"


def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for the plot, the records and the shallow model.")] = Path(
        "demo-output"
    ),
    model: Annotated[
        str | None, typer.Option(help="A pretrained encoder; by default all-MiniLM-L6-v2 from its PyPI package.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A GLUE task of the Hub; by default the sample of SST-2 that comes along.")
    ] = None,
    rate: Annotated[float, typer.Option(help="LayerDrop rate of the first model; the second has none.")] = 0.25,
    steps: Annotated[int, typer.Option(min=1, help="Steps without LayerDrop; with it, as many layer forwards.")] = 900,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an output folder that exists.")] = False,
    short: Annotated[bool, typer.Option("--short", help=f"{SHORT_STEPS} steps: quick, and poorer models.")] = False,
) -> None:
    """Train with and without LayerDrop, cut both to every depth, compare, and serve three layers."""
    from hf_layerdrop.cli.demo_run import DemoSettings, demo_checkpoint, demo_data, run_demo
    from hf_layerdrop.samplers.config import LayerDropConfig
    from hf_layerdrop.tasks.data import load_task_data
    from hf_layerdrop.tasks.registry import load_task

    # tasks of GLUE alone: the story ends with two sentences that are classified
    chosen = load_task(task, more={}, otherwise=_SAMPLE) if task else None
    LayerDropConfig(rate)
    if rate == 1:
        raise LayerDropConfigError("--rate is 1, at which no layer would ever run in training: give less than 1.")
    check_output(output, overwrite=overwrite)
    require("datasets", "evaluate", "matplotlib")
    if model:
        checkpoint_facts(model, revision=None, allow_pickle=False)
    start = time.perf_counter()
    console = PlainConsole()
    settings = DemoSettings(rate=rate, steps=SHORT_STEPS if short else steps, seed=seed)
    weights = model or str(demo_checkpoint())
    data = load_task_data(chosen, otherwise=_SAMPLE) if chosen else demo_data()
    quiet_transformers()
    console.print("LayerDrop demo: ", style="bold", end="")
    console.print(f"{data.task.name}, {len(data.train or ())} training rows, seed {seed}.")
    result, shallow = run_demo(data, weights, settings, output, lambda text: console.print(f"> {text}"))
    show(console, result, output, title=f"{data.task.name}, no finetuning after the cut")
    classify(console, shallow)
    console.print(f"Done in {(time.perf_counter() - start) / 60:.1f} minutes.")


def show(console: Console, result: object, output: Path, title: str) -> None:
    """Print the comparison and write it: Markdown, JSON, and the plot."""
    from hf_layerdrop.cli.demo_run import RECORDS
    from hf_layerdrop.reports.comparison import as_markdown, as_table, comparison_rows, extreme_rows
    from hf_layerdrop.results.plot import draw_depth_plot

    series, metric, costs = result.series, result.metric, result.costs  # type: ignore[attr-defined]
    for name, cost in costs.items():
        console.print(
            f"{name}: {cost.steps} steps, {cost.layer_forwards} layer forwards, {cost.seconds:.0f} s of training."
        )
    rows, extremes = comparison_rows(series, metric), extreme_rows(series, metric)
    console.print(as_table(rows, f"{metric}, {title}: the evenly spread set, and mean, worst and best of all sets"))
    console.print(as_table(extremes, "The sets behind worst and best"))
    (output / "depth.md").write_text(f"{as_markdown(rows)}\n\n{as_markdown(extremes)}\n", encoding="utf-8")
    plots = drawn(console, lambda: draw_depth_plot(series, metric, output / "depth", title=title))
    console.print(f"Plot: {plots[0] if plots else 'none'}, table: {output / 'depth.md'}, records: {output / RECORDS}.")


def classify(console: Console, folder: Path) -> None:
    """Classify two sentences with the shallow model: a plain checkpoint in transformers' own pipeline."""
    from transformers import pipeline

    from hf_layerdrop.cli.demo_run import SENTENCES

    console.print(f"The shallow model is a plain checkpoint: transformers.pipeline('text-classification', '{folder}')")
    for sentence, answer in zip(SENTENCES, pipeline("text-classification", str(folder))(list(SENTENCES)), strict=True):
        console.print(f"  {sentence:{_SENTENCE_WIDTH}} {answer['label']} ({answer['score']:.2f})")


def quiet_transformers() -> None:
    """Leave out transformers' notices, such as the report that the new head has no weights yet."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()  # of loading and saving; those of training and measuring stay
    logging.set_verbosity_error()
