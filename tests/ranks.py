"""Two gloo processes that do what a worker script says: how tests start them, and how the script runs its cases.

A hang of the ranks is a failure of the test that started them, and shows where each of them stood.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import distributed

import hf_layerdrop.distributed

SECONDS = 300  # all cases of the longest script take a tenth of it on a quiet machine
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
Case = Callable[[int, int], Mapping[str, object]]  # from rank and world size to what the rank found


def run_on_two_ranks(
    script: Path, *words: str, launcher: Sequence[str] = TORCHRUN, seconds: float = SECONDS, **environment: str
) -> str:
    """Return what the ranks print; ``script`` may import what stands beside the tests."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen(
        [sys.executable, "-m", *launcher, str(script), *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, complained = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        started.terminate()  # the launcher ends its ranks, which stand in sessions of their own
        printed, complained = started.communicate(timeout=60)
        pytest.fail(f"The ranks of {script.name} hang after {seconds} seconds.\n{printed[-500:]}\n{complained[-6000:]}")
    assert started.returncode == 0, complained[-3000:]
    return printed


def found_by_ranks(script: Path, *words: str) -> dict[str, list[dict]]:
    """Return by case what each rank found in a script that ends with `run_cases`."""
    said = [json.loads(line) for line in run_on_two_ranks(script, *words).splitlines() if line.startswith('{"case"')]
    return {entry["case"]: entry["ranks"] for entry in said}


def run_cases(cases: Mapping[str, Case], words: Sequence[str] = ()) -> None:
    """Run the cases whose name holds one of the words, without words all of them, and print a line for each."""
    faulthandler.register(signal.SIGTERM, chain=True)  # a rank that is ended because it hangs says where it stands
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    for name, case in cases.items():
        if words and not any(word in name for word in words):
            continue
        every: list[object] = [None] * size
        distributed.all_gather_object(every, case(rank, size))
        if rank == 0:
            print(json.dumps({"case": name, "ranks": every}), flush=True)  # noqa: T201 - what the test reads
    hf_layerdrop.distributed.leave_ranks()
