"""The benchmark of a search by several processes: it starts them, and compares their records."""

from __future__ import annotations

import json
from pathlib import Path

from warm import run_python

SMALL = ("--layers", "6", "--keep", "3", "--hidden", "32", "--batches", "2", "--rows", "4", "--length", "8")


def test_two_ranks_give_the_record_of_one_process() -> None:
    done = run_python("-m", "benchmarks", "ranks", "--json", *SMALL, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["same_record"]
    assert numbers["ranks"] == len(numbers["cpu_seconds_by_rank"]) == 2
    assert numbers["cpu_seconds_alone"] > 0
    assert numbers["seconds_alone"] > 0
