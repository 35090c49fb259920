"""The benchmark of rows that drop their own layers: a layer's time is saved by their share."""

from __future__ import annotations

import json
from pathlib import Path

from warm import run_python

ROOT = Path(__file__).parent.parent


def test_rows_that_drop_their_own_layers_are_timed_beside_rate_0_and_a_cut() -> None:
    words = ("step", "--json", "--clock", "cpu", "--parts", "rows", "--steps", "20", "--hidden", "128", "--layers", "8")
    done = run_python("-m", "benchmarks", *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout.splitlines()[-1])["comparisons"]
    assert len(compared) == 4
    by_rate = {rate: compared[f"passes by row, rate {rate}: against rate 0"]["ratio_median"] for rate in (0.25, 0.5)}
    assert by_rate[0.5] < by_rate[0.25] < 1
