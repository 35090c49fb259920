"""Time of a training step with LayerDrop, beside the ideal, beside transformers' own, beside other designs.

The ideal is the measured step of a model that is physically cut to the same layers. Every comparison runs its
contenders in turn inside one round, on the same batch and the same layers; a ratio is the median over rounds of the
ratio in a round, with a bootstrap interval of 95 %. A step is forward, backward, AdamW; other dropout is off, so that
contenders that do the same work must have the same loss, to the bit, in every round, which is checked.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._rounds import Contender, time_rounds
from benchmarks._step_table import Report

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
DEPTHS = (6, 12, 24, 48, 96)


def run(
    layers: int = 12,
    hidden: int = 256,
    rows: int = 8,
    length: int = 64,
    steps: int = 200,
    threads: int = 1,
    short: bool = False,
) -> dict[str, Any]:
    """Measure all of it; ``short`` shows in seconds that it works, and nothing else."""
    import torch

    from benchmarks._contenders import Size

    torch.set_num_threads(threads)
    size = Size(4, 32, 2, 8) if short else Size(layers, hidden, rows, length)
    steps = 5 if short else steps
    report = Report(size)
    report.compare("rate 0", _untouched(size), steps)
    for rate in RATES:
        report.compare(f"rate {rate}", _ideal(size, rate), steps if rate == RATES[-1] else max(steps // 4, 5))
    report.compare("bart", _bart(size, 0.5), steps)
    report.compare("designs", _designs(size, 0.5), max(steps // 2, 5), exact=False)
    report.memory({rate: _saved_mb(size, rate, 3 if short else 16) for rate in (0.0, *RATES)})
    report.overheads(
        {depth: _overhead(depth, 5 if short else 1200 // depth) for depth in DEPTHS[: 2 if short else None]}
    )
    return {"size": str(size), "steps": steps, "short": short, "cpu": _cpu(), **report.numbers}


def _untouched(size: Any) -> dict[str, Contender]:
    from benchmarks._contenders import batch_of, bert, with_and_without

    return {**with_and_without(bert(size), batch_of(size), 0.0)}


def _ideal(size: Any, rate: float) -> dict[str, Contender]:
    from benchmarks._contenders import CutStep, batch_of, bert, layerdrop_step

    batch = batch_of(size)
    ours, mask_of = layerdrop_step(bert(size), batch, rate)
    return {"LayerDrop": ours, "cut": CutStep(bert(size), batch, mask_of)}


def _bart(size: Any, rate: float) -> dict[str, Contender]:
    from benchmarks._contenders import bart, batch_of, fixed_layerdrop_step, seeded_step

    batch = batch_of(size, tokens_as_labels=True)
    own = seeded_step(bart(size, rate), batch)
    return {"LayerDrop": fixed_layerdrop_step(bart(size, 0.0), batch, rate), "transformers' own": own}


def _designs(size: Any, rate: float) -> dict[str, Contender]:
    from benchmarks._contenders import DESIGNS, batch_of, bert, fixed_layerdrop_step, seeded_step, wrapped

    batch = batch_of(size)
    others = {name: seeded_step(wrapped(bert(size), design, rate), batch) for name, design in DESIGNS.items()}
    return {"LayerDrop": fixed_layerdrop_step(bert(size), batch, rate), **others}


def _overhead(depth: int, forwards: int) -> dict[str, float]:
    """Return what LayerDrop adds to a training forward of tiny layers that all run, and its draw, in microseconds.

    Both sides are the same model: two models that are built alike differ by more than this, by where their memory lies.
    """
    from benchmarks._contenders import Size, batch_of, bert
    from hf_layerdrop import inject_layerdrop, layerdrop_state

    size = Size(depth, 8, 1, 4)
    model, batch = bert(size), batch_of(size)
    times = time_rounds({"with": _Forward(model, batch, 1e-9), "without": _Forward(model, batch, None)}, forwards)
    added = median(one - other for one, other in zip(times["with"], times["without"], strict=True))
    inject_layerdrop(model, 1e-9)
    draw, seconds = layerdrop_state(model).draws["encoder"], []
    for _ in range(forwards):
        start = time.perf_counter()
        draw.begin(model.bert.encoder, ())
        seconds.append(time.perf_counter() - start)
    return {"forward_us": 1000 * added, "draw_us": 1e6 * median(seconds)}


class _Forward:
    """A training forward alone, of a model with LayerDrop at a rate, or (None) without."""

    def __init__(self, model: Any, batch: Any, rate: float | None) -> None:
        self.model, self.batch, self.rate = model, batch, rate

    def prepare(self, step: int) -> None:
        """Inject or remove, and let the interpreter get used to it."""
        from hf_layerdrop import inject_layerdrop, remove_layerdrop
        from hf_layerdrop.state import find_injected

        if find_injected(self.model) is not None:
            remove_layerdrop(self.model)
        if self.rate is not None:
            inject_layerdrop(self.model, self.rate)
        for _ in range(3):
            self.run()

    def run(self) -> Any:
        """Run it."""
        return self.model(**self.batch).loss.detach()


def _saved_mb(size: Any, rate: float, forwards: int) -> float:
    """Return the mean megabytes that a training forward keeps for its backward pass, weights not counted."""
    import torch

    from benchmarks._contenders import batch_of, bert, layerdrop_step

    model, batch = bert(size), batch_of(size)
    step, _ = layerdrop_step(model, batch, rate)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    total = 0
    for number in range(forwards):
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        step.prepare(number)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(**batch).loss
        total += sum(nbytes for address, nbytes in kept.items() if address not in weights)
        del loss
    return total / forwards / 1e6


def _cpu() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
