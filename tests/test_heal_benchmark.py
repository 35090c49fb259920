"""The benchmark of healing measures its arms on the same rows, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warm import run_python


@pytest.mark.long
@pytest.mark.parametrize("model", ["minilm", "lm"])
def test_arms_are_measured_once_and_a_journal_is_gone_on_with(model: str, tmp_path: Path) -> None:
    words = ("-m", "benchmarks", "heal", "--model", model, "--short", "1", "--json", "--arms", "map+alone")
    words = (*words, "--journal", str(tmp_path / "runs.jsonl"))
    first = run_python(*words, cwd=Path(__file__).parent.parent)
    assert first.returncode == 0, first.stderr
    numbers = json.loads(first.stdout.splitlines()[-1])
    assert [one["arm"] for one in numbers["runs"]] == ["map", "alone"]
    assert "The map was" in numbers["runs"][0]["notes"][0]
    assert list(numbers["arms"]) == ["whole model", "cut", "map", "alone"]
    low, high = (0, 1) if model == "minilm" else (1, 3000)
    assert all(low < numbers["arms"][arm]["3"]["mean"] < high for arm in ("map", "alone"))
    runs = (tmp_path / "runs.jsonl").read_text()
    second = run_python(*words, cwd=Path(__file__).parent.parent)
    assert json.loads(second.stdout.splitlines()[-1])["runs"] == numbers["runs"]
    assert (tmp_path / "runs.jsonl").read_text() == runs
