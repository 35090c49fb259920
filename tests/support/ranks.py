"""Two gloo processes that do what a worker script says: how tests start them, and how the script runs its cases.

A hang of the ranks is a failure of the test that started them, and shows where each of them stood.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import distributed

import hf_layerdrop.injection.ranks.ddp
from warm import run_python

SUPPORT = Path(__file__).parent  # where the scripts of ranks lie
SECONDS = 300  # all cases of the longest script take a tenth of it on a quiet machine
Case = Callable[[int, int], Mapping[str, object]]  # from rank and world size to what the rank found


def run_on_two_ranks(script: Path, *words: str, seconds: float = SECONDS, **environment: str) -> str:
    """Return what the ranks print; ``script`` may import what stands beside it, and conftest."""
    port = free_port()
    ranks = [{**environment, **as_by_torchrun(rank, 2, port)} for rank in range(2)]
    done = run_python(str(script), *words, environments=ranks, seconds=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def as_by_torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun tells each process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}


def free_port() -> int:
    """Find a port below those that the system hands out by itself, so that nobody gets it before the ranks do."""
    for port in random.Random().sample(range(20_000, 30_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the ranks do, which wait for no old run
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("None of a hundred ports is free.")


def launch_two_ranks(
    script: Path, *words: str, launcher: Sequence[str], seconds: float = SECONDS, **environment: str
) -> str:
    """Do the same by a launcher, which takes longer."""
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent), os.environ.get("PYTHONPATH", "")])
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
    hf_layerdrop.injection.ranks.ddp.leave_ranks()
