"""The hf-layerdrop command: each file parses the arguments of one command, calls one function and prints the result.

Nothing heavy is imported at the top: help, and every error that arguments, config.json and weight headers decide, come
at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from hf_layerdrop.cli import demo, distill, inspect, prune, push, recipe, reproduce, search, sweep, train
from hf_layerdrop.cli.errors import DONE, run_reporting_errors

app = typer.Typer(name="hf-layerdrop", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command("demo")(demo.demo_command)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train.train_command)
app.command("distill", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    distill.distill_command
)
app.command("sweep")(sweep.sweep_command)
app.command("search")(search.search_command)
app.command("prune")(prune.prune_command)
app.command("push")(push.push_command)
app.command("inspect")(inspect.inspect_command)
app.command("run")(recipe.run_command)
app.command("reproduce")(reproduce.reproduce_command)

# Values of the flag --debug of TrainingArguments, which `train` passes through.
_DEBUG_OF_TRAINER = {"underspecified_overflow", "tpu_metrics_debug"}


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong usage or input, 1 anything else."""
    arguments, debug = _split_debug(arguments)
    code = run_reporting_errors(lambda: app(arguments, prog_name="hf-layerdrop", standalone_mode=False), debug=debug)
    ranks = sys.modules.get("hf_layerdrop.distributed")  # importing it takes seconds, which no other command needs
    if code == DONE and ranks is not None:
        ranks.leave_ranks()
    return code


@app.callback(invoke_without_command=True)
def hf_layerdrop(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; any place will do.")] = False,
) -> None:
    """Train transformers with LayerDrop, then take out a shallow model of any depth, without finetuning."""
    if show_version:
        typer.echo(f"hf-layerdrop {version('hf-layerdrop')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _split_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take our --debug out of the arguments, wherever it stands."""
    followers = [*arguments, ""][1:]
    rest = [
        argument
        for argument, follower in zip(arguments, followers, strict=True)
        if argument != "--debug" or follower in _DEBUG_OF_TRAINER
    ]
    return rest, len(rest) < len(arguments)
