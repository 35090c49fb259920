"""The parts of `make gpu` measure what they are named for, on a CPU, in this process: `make gpu-short` in short."""

from __future__ import annotations

import pytest

from benchmarks.gpu import PARTS
from benchmarks.gpu import part as gpu_part
from benchmarks.gpu._rows import read_rows

# tests/gpu runs as it is; steps compiles for most of a minute
PARTS_IN_SHORT = [name for name in PARTS if name not in ("tests", "steps")]
FINDS = {
    "memory": "rate_0.5_MB",
    "inference": "rows_a_second",
    "drafts": "same_tokens",
    "search": "same_scores",
    "overhead": "train, us",
}


@pytest.mark.parametrize("name", PARTS_IN_SHORT)
def test_a_part_takes_all_of_its_measurements(name, tmp_path):
    gpu_part.main(name, str(tmp_path), "cpu", "short")
    *rows, last = read_rows(tmp_path / f"{name}.jsonl")
    assert last["done"]
    assert rows
    assert all(row.get(FINDS[name], False) is not False for row in rows), rows
