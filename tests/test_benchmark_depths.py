"""The benchmark of a step that trains several depths compares equal work."""

from __future__ import annotations

import json
from pathlib import Path

from warm import run_python


def test_a_step_of_several_depths_is_compared_with_the_same_work_on_cut_models() -> None:
    words = ("-m", "benchmarks", "step", "--short", "1", "--json", "--clock", "cpu", "--parts", "depths")
    done = run_python(*words, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["comparisons"]["depths: against cut"]["same_losses"]
    assert numbers["bounds"].keys() == {"depths", "switch"}
    assert numbers["switch_ms"] > 0


def test_arms_get_equal_layer_forwards_and_a_journal_is_gone_on_with(tmp_path: Path) -> None:
    words = ("-m", "benchmarks", "depths", "--short", "1", "--json", "--arms", "standard,together-all,alone-3")
    again = (*words, "--journal", str(tmp_path / "runs.jsonl"))
    first = run_python(*again, cwd=Path(__file__).parent.parent)
    assert first.returncode == 0, first.stderr
    numbers = json.loads(first.stdout.splitlines()[-1])
    assert numbers["arms"]["standard"]["budget"] == 1
    assert numbers["arms"]["alone-3"]["budget"] == 0.5
    assert numbers["arms"]["together-all"]["budget"] == 15 / 12  # one step of 15 layers for two of six
    assert numbers["arms"]["alone-3"]["accuracy"].keys() == {"3"}
    runs = (tmp_path / "runs.jsonl").read_text()
    second = run_python(*again, cwd=Path(__file__).parent.parent)
    assert json.loads(second.stdout.splitlines()[-1])["runs"] == numbers["runs"]
    assert (tmp_path / "runs.jsonl").read_text() == runs
