"""The terminal: what files say is shown as it is, and neither styles the text nor moves the cursor."""

from __future__ import annotations

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

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Render a text, wherever it stands: a line, a cell, a title."""
        return super().render_str(without_controls(text), **{**settings, "markup": False, "emoji": False})


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
