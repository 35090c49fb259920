"""A table for the terminal that leaves out its least columns where there is no room, and says so."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

_ROOM = 17  # for a text, which wraps: six layers in one line, many in a few


class FittingTable(Table):
    """A table of texts, which wrap, and of numbers, which do not: a rich table that gives up columns to fit.

    Args:
        names: The columns.
        rows: A cell for each column.
        texts: Columns of texts; the others are of numbers.
        spare: Columns that may be left out, the first one first.
        title: A line above the table.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        texts: Collection[str],
        spare: Sequence[str] = (),
        title: str | None = None,
    ) -> None:
        super().__init__(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        self._given, self._texts, self._spare = (names, rows), texts, [name for name in spare if name in names]
        for number, name in enumerate(names):
            widest = max((len(row[number]) for row in rows), default=0)
            if name in texts:
                self.add_column(name, min_width=max(min(widest, _ROOM), *map(len, name.split())))
            else:
                self.add_column(name, justify="right", no_wrap=True, min_width=widest)  # an interval has a space
        for row in rows:
            self.add_row(*row)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the columns that there is room for, and name the others."""
        shown, left_out = self, []
        for name in self._spare:
            if Measurement.get(console, options.update(width=10_000), shown).minimum <= options.max_width:
                break
            left_out.append(name)
            shown = self._without(left_out)
        yield from Table.__rich_console__(shown, console, options)
        if left_out:
            yield f"No room for {', '.join(left_out)}: widen the terminal, or set COLUMNS=160."

    def _without(self, left_out: Collection[str]) -> FittingTable:
        names, rows = self._given
        places = [place for place, name in enumerate(names) if name not in left_out]
        return FittingTable(
            [names[place] for place in places],
            [[row[place] for place in places] for row in rows],
            texts=self._texts,
            title=None if self.title is None else str(self.title),
        )
