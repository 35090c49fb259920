"""Time of a training step on two ranks: what LayerDrop saves under DDP, and what it costs.

Two processes on this machine train by DistributedDataParallel over gloo. LayerDrop at each rate is timed beside the
untouched model, in the same rounds, on the same batches. Where layers were dropped, the reduction of gradients is
finished in one of two ways, which are timed beside each other: by zero gradients for the dropped layers
(``find_unused_parameters=False``), or by a walk through the graph that finds them (``True``). A step is forward,
backward with the all-reduce, and AdamW; the ranks meet before each one, and rank 0's clock counts. The all-reduce is of
all gradients at every rate: what is saved is computation.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._rounds import Contender

if TYPE_CHECKING:
    from benchmarks._contenders import Size, Step

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
RANKS = 2


def run(
    layers: int = 12,
    hidden: int = 256,
    rows: int = 8,
    length: int = 64,
    steps: int = 200,
    threads: int = 1,
    clock: str = "wall",
    short: bool = False,
) -> dict[str, Any]:
    """Measure all of it with two processes; ``short`` shows in seconds that it works, and nothing else."""
    from torch import multiprocessing

    from benchmarks._contenders import Size

    size = Size(4, 32, 2, 8) if short else Size(layers, hidden, rows, length)
    rates, steps = (RATES[-1:], 5) if short else (RATES, steps)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "numbers.json")
        multiprocessing.spawn(_rank, (_free_port(), size, rates, steps, threads, clock, file), nprocs=RANKS)
        return {
            "ranks": RANKS,
            "size": str(size),
            "steps": steps,
            "short": short,
            "clock": clock,
            **json.loads(file.read_text()),
        }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank(
    rank: int, port: int, size: Size, rates: Sequence[float], steps: int, threads: int, clock: str, file: Path
) -> None:
    """Be one of the processes; rank 0 prints, and writes the numbers."""
    import contextlib
    import os

    import torch
    from torch import distributed

    from benchmarks._step_table import Report
    from hf_layerdrop.injection.ranks.ddp import leave_ranks

    torch.set_num_threads(threads)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    with contextlib.ExitStack() as stack:
        if rank:  # the same work, seen once
            silence = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        report = Report(f"{size} on each of two ranks", clock)
        for rate in (0.0, *rates):
            rounds = steps if rate in (0.0, RATES[-1]) else max(steps // 4, 5)
            other_work = ["untouched"] if rate else []
            report.compare(f"DDP, rate {rate}", _beside_untouched(size, rate, rank), rounds, other_work=other_work)
        report.compare(f"DDP, rate {RATES[-1]}, two ways", _two_ways(size, RATES[-1], rank), steps)
    if rank == 0:
        file.write_text(json.dumps(report.numbers))
    leave_ranks()


def _beside_untouched(size: Size, rate: float, rank: int) -> dict[str, Contender]:
    from benchmarks._contenders import Step, batch_of, bert

    untouched = Step(bert(size), batch_of(size, seed=rank))
    return {"LayerDrop": _with_layerdrop(size, rate, rank), "untouched": _Together(untouched)}


def _two_ways(size: Size, rate: float, rank: int) -> dict[str, Contender]:
    return {
        "zero gradients": _with_layerdrop(size, rate, rank),
        "find_unused_parameters": _with_layerdrop(size, rate, rank, find_unused=True),
    }


def _with_layerdrop(size: Size, rate: float, rank: int, *, find_unused: bool = False) -> Contender:
    from benchmarks._contenders import batch_of, bert, layerdrop_step

    step, _ = layerdrop_step(bert(size), batch_of(size, seed=rank), rate)
    return _Together(step, find_unused=find_unused)


class _Together:
    """A step of a model that all ranks train, which they begin together."""

    def __init__(self, step: Step, *, find_unused: bool = False) -> None:
        from torch.nn.parallel import DistributedDataParallel

        step.model = DistributedDataParallel(step.model, find_unused_parameters=find_unused)
        self._step = step

    def prepare(self, number: int) -> None:
        """Prepare the step, and wait for the other ranks."""
        from torch import distributed

        self._step.prepare(number)
        distributed.barrier()

    def run(self) -> Any:
        """Step, and return this rank's loss."""
        return self._step.run()
