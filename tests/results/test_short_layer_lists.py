"""How layers and depths are shown: runs by their ends, and of several stacks which is which."""

from __future__ import annotations

from hf_layerdrop.reports.comparison import comparison_rows
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import render_html, render_markdown


def record(**stacks: tuple[int, ...]) -> SubNetworkResult:
    depth = sum(map(len, stacks.values()))
    return SubNetworkResult(stacks, 1_000_000 * depth, {"accuracy": depth / 20}, None, depth)


def test_the_column_of_depths_names_the_stacks_in_the_order_of_its_cells() -> None:
    two = [record(encoder=(0, 1, 2, 3), decoder=kept) for kept in ((0, 1, 2), (0, 2), (2,))]
    text = render_markdown(two)
    assert text.startswith("| depth, encoder + decoder | kept layers |")
    assert "| 4 + 2 | encoder 0-3; decoder 0, 2 |" in text
    assert "<th>depth, encoder + decoder</th>" in render_html(two)
    assert render_markdown([record(encoder=(0, 1))]).startswith("| depth | kept layers |")


def test_comparisons_write_runs_by_their_ends() -> None:
    whole, cut = record(encoder=tuple(range(12))), record(encoder=(0, 1, 2, 3, 4, 6, 7, 8, 9, 11))
    rows = comparison_rows({"a": [cut, whole]}, "accuracy")
    assert [row[1] for row in rows[1:]] == ["0-11", "0-4, 6-9, 11"]
