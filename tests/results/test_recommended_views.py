"""Recommended sets and intervals as they are shown: whole or not at all, and with nothing that a stranger styled."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hf_layerdrop import RecommendedSet, SubNetworkResult
from hf_layerdrop.cli.console import PlainConsole
from hf_layerdrop.results.recommended import as_recommended, as_results, recommended_markdown, recommended_table
from hf_layerdrop.results.table import render_table
from tables import table_for

ENDS = {"accuracy": (0.531, 0.888), "accuracy_mm": (0.5, 0.75)}
SCORES = {"accuracy": 0.7531, "accuracy_mm": 0.6521, "loss": 0.4}


def result(*kept):
    return SubNetworkResult({"encoder": kept}, 10**6, SCORES, 0.01, 2, {"accuracy": 20}, ENDS)


def lines(shown, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_an_interval_is_never_cut_short(width):
    shown = lines(render_table([result(0, 1, 2, 4, 7, 9), result(3)]), width)
    assert "…" not in shown
    assert shown.count("0.7531 (0.531-0.888)") == 2
    assert shown.count("0.6521 (0.500-0.750)") == 2
    assert ("No room for" in shown) == (width < 160)


def test_records_come_back_as_they_were():
    measured = [result(0, 1), result(3)]
    sets = [as_recommended(one, "beam", "a slate") for one in measured]
    table = table_for().model_copy(update={"sets": sets[::-1]})
    for one, back in zip(measured, as_results(table), strict=True):
        assert (back.keep_layers, back.metrics, back.intervals) == (one.keep_layers, one.metrics, one.intervals)
    assert sets[0].machine == "a slate"


def test_what_a_stranger_wrote_is_shown_as_it_is(capsys):
    marked = "[red]x[/red] | [a](http://b) <b>"
    one = RecommendedSet(keep_layers={"encoder": [0]}, parameters=1, metrics={"accuracy": 0.5}, chosen_by=marked)
    table = table_for().model_copy(update={"sets": [one]})
    PlainConsole().print(recommended_table(table))
    said = capsys.readouterr().out
    assert all(word in said for word in marked.split())
    row = recommended_markdown(table).splitlines()[-1]
    assert "\\[red\\]" in row
    assert "<b>" not in row
    assert row.replace("\\|", "").count("|") == 7
