"""The terminal: what files say is shown as it is, and neither styles the text nor moves the cursor."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hf_layerdrop.errors import said_by
from hf_layerdrop.results.escaping import without_controls


class PlainConsole(Console):
    """A console that takes every text literally; a style is given beside it, by ``style=``."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, quiet=quiet)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a text, wherever it stands: a line, a cell, a title."""
        return super().render_str(without_controls(text), **{**settings, "markup": False, "emoji": False})


def console_of_launch() -> PlainConsole:
    """Join the other processes of a launch, if there is one, and return a console that is silent but for the first."""
    if "LOCAL_RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        return PlainConsole()
    from hf_layerdrop.evaluation.ranks import processes  # imports Trainer

    return PlainConsole(quiet=not processes().is_main_process)


def drawn(console: Console, draw: Callable[[], list[Path]]) -> list[Path]:
    """Return the files of a picture; one that cannot be drawn is a warning, as the numbers behind it are written."""
    try:
        return draw()
    except Exception as error:
        console.print(f"Warning: the picture could not be drawn ({said_by(error)}).", style="yellow", soft_wrap=True)
        return []


def print_next(console: Console, *words: object) -> None:
    """End a command with the line that usually comes next, to be copied."""
    console.print(f"Next: hf-layerdrop {shlex.join(map(str, words))}", soft_wrap=True)
