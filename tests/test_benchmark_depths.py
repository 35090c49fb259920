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
    assert 0 < numbers["switch_ms"] < 5
