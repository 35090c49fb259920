"""The hf-layerdrop command: each file parses the arguments of one command, calls one function and prints the result.

Nothing heavy is imported at the top, so that help and version come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from hf_layerdrop.cli import app_page, demo, distill, heal, inspect, prune, push, recipe, search, sweep, train
from hf_layerdrop.cli.errors import run_app
from hf_layerdrop.errors import LayerDropError

app = typer.Typer(name="hf-layerdrop", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command("demo")(demo.demo_command)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train.train_command)
app.command("distill", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    distill.distill_command
)
app.command("heal", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(heal.heal_command)
app.command("sweep")(sweep.sweep_command)
app.command("search")(search.search_command)
app.command("prune")(prune.prune_command)
app.command("push")(push.push_command)
app.command("inspect")(inspect.inspect_command)
app.command("run")(recipe.run_command)
app.command("app")(app_page.app_command)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong usage or input, 1 anything else."""
    return run_app(app, arguments, name="hf-layerdrop")


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


@app.command("reproduce", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reproduce_command() -> None:
    """Say where the reproduction of the paper went."""
    raise LayerDropError(
        "hf-layerdrop reproduce is python -m reproduction now, which is not installed: run it in a clone of the "
        "repository."
    )
