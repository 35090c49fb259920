"""Run ``python -m reproduction``, in a clone of the repository."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from hf_layerdrop.cli.errors import run_app
from reproduction.command import reproduce_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command()(reproduce_command)


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return run_app(app, arguments, name="python -m reproduction")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
