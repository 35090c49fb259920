"""The benchmark of drafts counts the same texts with and without one, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warm import run_python


@pytest.mark.long
def test_texts_are_the_same_and_a_journal_is_gone_on_with(tmp_path: Path) -> None:
    journal = tmp_path / "drafts.jsonl"
    words = ("-m", "benchmarks", "drafts", "--short", "1", "--json", "--journal", str(journal))
    first = run_python(*words, cwd=Path(__file__).parent.parent)
    assert first.returncode == 0, first.stderr
    numbers = json.loads(first.stdout.splitlines()[-1])
    arms = ["none", "first 2", "spread 2", "searched 2", "searched, any depth"]
    assert [(one["kind"], one["arm"]) for one in numbers["runs"]] == [
        (kind, arm) for kind in ("layerdrop", "standard") for arm in arms
    ]
    for one in (one for one in numbers["runs"] if one["arm"] != "none"):
        assert all(found["same"] == found["of"] == 2 for found in one["lengths"].values())
        assert 0 <= one["acceptance"] <= 1
        # A round runs 4 layers and proposes a token, but for rounds that begin at the last token of a text.
        rounds, forwards = 1 / one["lengths"]["1"]["tokens_per_round"], one["lengths"]["1"]["layer_forwards_per_token"]
        assert (4 + one["depth"]) * rounds - one["depth"] / 8 <= forwards <= (4 + one["depth"]) * rounds + 1e-9
    whole = next(one for one in numbers["runs"] if one["arm"] == "searched, any depth")
    assert whole["same_of_all"]["same"] == whole["same_of_all"]["of"] == 4
    lines = journal.read_text()
    journal.write_text("".join(lines.splitlines(keepends=True)[:5]))
    second = run_python(*words, cwd=Path(__file__).parent.parent)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout.splitlines()[-1])["runs"][:5] == numbers["runs"][:5]
    assert len(journal.read_text().splitlines()) == 10
