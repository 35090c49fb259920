"""Time of a training step with LayerDrop, beside the ideal, beside transformers' own, beside other designs.

The ideal is the measured step of a model that is physically cut to the same layers. Every comparison runs its
contenders in turn inside one round, on the same batch and the same layers; a ratio is the median over rounds of the
ratio in a round, with a bootstrap interval of 95 %. A step is forward, backward, AdamW; other dropout is off, so that
contenders that do the same work must have the same loss, to the bit, in every round, which is checked.

``parts`` names what to measure, separated by commas: ``bounds`` (what has a bound), ``rates`` (other rates beside the
ideal), ``designs`` (other designs), ``depth``, ``batch`` and ``length`` (what a step costs as these grow), ``memory``
(at its peak, by rate), ``rows`` (rows that drop their own layers), ``depths`` (a step that trains four depths, beside
one model cut to each in turn, and what it takes to enter and leave `sub_network`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._rounds import Contender
from benchmarks._step_table import Report

if TYPE_CHECKING:
    from benchmarks._contenders import Size

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
DEPTHS = (6, 12, 24, 48, 96)
BATCHES = (1, 4, 32)
LENGTHS = (16, 128, 512)
NARROW = 64  # the width of models whose depth grows


def run(
    layers: int = 12,
    hidden: int = 256,
    rows: int = 8,
    length: int = 64,
    steps: int = 200,
    threads: int = 1,
    parts: str = "all",
    clock: str = "wall",
    short: bool = False,
) -> dict[str, Any]:
    """Measure the parts; ``short`` shows in seconds that it works, and nothing else."""
    import torch

    from benchmarks._contenders import Size

    chosen = list(PARTS) if parts == "all" else parts.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise SystemExit(f"There is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}.")
    torch.set_num_threads(threads)
    size = Size(4, 32, 2, 8) if short else Size(layers, hidden, rows, length)
    steps = 5 if short else steps
    report = Report(size, clock)
    for part in chosen:
        PARTS[part](report, size, steps, short)
    return {"size": str(size), "steps": steps, "short": short, "clock": clock, "cpu": _cpu(), **report.numbers}


def _bounds(report: Report, size: Size, steps: int, _short: bool) -> None:
    report.compare("rate 0", _untouched(size), steps)
    report.compare(f"rate {RATES[-1]}", _ideal(size, RATES[-1]), steps)
    report.compare("bart", _bart(size, RATES[-1]), steps)


def _rates(report: Report, size: Size, steps: int, _short: bool) -> None:
    for rate in RATES[:-1]:
        report.compare(f"rate {rate}", _ideal(size, rate), max(steps // 4, 5))


def _designs(report: Report, size: Size, steps: int, _short: bool) -> None:
    from benchmarks._contenders import DESIGNS, batch_of, bert, fixed_layerdrop_step, seeded_step, wrapped

    batch, rate = batch_of(size), RATES[-1]
    others = {name: seeded_step(wrapped(bert(size), design, rate), batch) for name, design in DESIGNS.items()}
    ours = fixed_layerdrop_step(bert(size), batch, rate)
    other_work = [name for name, design in DESIGNS.items() if not design.same_work]
    report.compare("designs", {"LayerDrop": ours, **others}, max(steps // 4, 5), other_work=other_work)


def _memory(report: Report, size: Size, _steps: int, short: bool) -> None:
    from benchmarks._memory import memory_by_rate

    report.memory(memory_by_rate(size, (0.0, *RATES), 3 if short else 16))


def _by_depth(report: Report, size: Size, steps: int, short: bool) -> None:
    sizes = [replace(size, layers=depth, hidden=min(size.hidden, NARROW)) for depth in DEPTHS[: 2 if short else None]]
    _grow(report, {f"{one.layers} layers of width {one.hidden}": one for one in sizes}, steps)


def _by_batch(report: Report, size: Size, steps: int, short: bool) -> None:
    sizes = [replace(size, rows=rows) for rows in BATCHES[: 2 if short else None]]
    _grow(report, {f"{one.rows} x {one.length} tokens": one for one in sizes}, steps)


def _by_length(report: Report, size: Size, steps: int, short: bool) -> None:
    sizes = [replace(size, length=length, rows=2) for length in LENGTHS[: 1 if short else None]]
    _grow(report, {f"{one.rows} x {one.length} tokens": one for one in sizes}, steps)


def _rows(report: Report, size: Size, steps: int, _short: bool) -> None:
    """Time forward and backward of rows that drop their own layers beside rate 0, and beside a cut of that share."""
    from benchmarks._contenders import Pass, batch_of, bert, row_pass

    for rate in (0.25, 0.5):
        batch, kept = batch_of(size), round(size.layers * (1 - rate))
        contenders = {
            "LayerDrop": row_pass(bert(size), batch, rate),
            "rate 0": Pass(bert(size), batch),
            f"{kept} layers": Pass(bert(replace(size, layers=kept)), batch),
        }
        others = [name for name in contenders if name != "LayerDrop"]
        report.compare(f"passes by row, rate {rate}", contenders, max(steps // 4, 5), other_work=others)


def _grow(report: Report, sizes: Mapping[str, Size], steps: int) -> None:
    """Time a step at rate 0.5 beside the ideal and the untouched model."""
    from benchmarks._contenders import Step, batch_of, bert

    for name, size in sizes.items():
        contenders = _ideal(size, RATES[-1]) | {"untouched": Step(bert(size), batch_of(size))}
        report.compare(f"{name}, rate {RATES[-1]}", contenders, max(steps // 10, 5), other_work=["untouched"])


def _several_depths(report: Report, size: Size, steps: int, short: bool) -> None:
    from benchmarks._depths import several_depths, switch_ms

    report.compare("depths", several_depths(size), max(steps // 4, 5))
    report.switches(switch_ms(size, 5 if short else 200, report.clock))


PARTS: dict[str, Callable[[Report, Size, int, bool], None]] = {
    "bounds": _bounds,
    "rates": _rates,
    "designs": _designs,
    "depth": _by_depth,
    "batch": _by_batch,
    "length": _by_length,
    "memory": _memory,
    "rows": _rows,
    "depths": _several_depths,
}


def _untouched(size: Size) -> dict[str, Contender]:
    from benchmarks._contenders import batch_of, bert, with_and_without

    return {**with_and_without(bert(size), batch_of(size), 0.0)}


def _ideal(size: Size, rate: float) -> dict[str, Contender]:
    from benchmarks._contenders import CutStep, batch_of, bert, layerdrop_step

    batch = batch_of(size)
    ours, mask_of = layerdrop_step(bert(size), batch, rate)
    return {"LayerDrop": ours, "cut": CutStep(bert(size), batch, mask_of)}


def _bart(size: Size, rate: float) -> dict[str, Contender]:
    from benchmarks._contenders import bart, batch_of, fixed_layerdrop_step, seeded_step

    batch = batch_of(size, tokens_as_labels=True)
    own = seeded_step(bart(size, rate), batch)
    return {"LayerDrop": fixed_layerdrop_step(bart(size, 0.0), batch, rate), "transformers' own": own}


def _cpu() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
