"""Time, bytes and memory of loading some layers of a checkpoint, beside a plain checkpoint of those layers alone.

Contenders in turn, each from a cold page cache (or a warm one): ``from_pretrained(keep_layers=...)`` where nothing is
remembered, as another process does it that finds on disk that the cut passes, and again when a process remembers the
model; transformers' own ``from_pretrained`` of a checkpoint that has these
layers alone; and the whole model loaded and then cut. Transformers maps files into memory and reads a page when it is
first used, so that each run ends by looking at every page of every weight. All must have the same weights.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._checkpoints import bert_classifier
from benchmarks._rounds import ratio, time_rounds

OURS, NOTED, AGAIN = "keep_layers", "keep_layers, noted on disk", "keep_layers, again"
PLAIN, CUT = "plain", "load, then cut"
VALUES_A_PAGE = 1024


def run(
    layers: int = 24,
    hidden: int = 1024,
    keep: int = 6,
    rounds: int = 9,
    threads: int = 2,
    folder: str = "",
    cached: bool = False,
    clock: str = "wall",
    short: bool = False,
) -> dict[str, Any]:
    """Measure all of it on files in ``folder``; ``short`` shows in seconds that it works, and nothing else.

    With ``cached`` the files stay in the page cache, where fixed costs show; the clock ``cpu`` leaves out the reading.
    """
    import torch

    layers, hidden, keep, rounds = (8, 128, 3, 2) if short else (layers, hidden, keep, rounds)
    with tempfile.TemporaryDirectory(dir=folder or None) as temporary:
        os.environ["HF_ASSETS_CACHE"] = str(Path(temporary, "assets"))  # read when huggingface_hub is imported
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        loads = _contenders(Path(temporary), layers, hidden, keep, cold=not cached)
        times = time_rounds(loads, rounds, warm_up=1, on_round=_check_same, clock=clock)
        costs = {name: _cost(load) for name, load in loads.items()}
        kept = _weight_bytes(Path(temporary, "plain"))
    where = "from the page cache" if cached else "from a cold page cache"
    what = f"{keep} of {layers} layers of width {hidden}, {kept / 1e6:.0f} MB, {where}, {rounds} rounds"
    _print_table(times, costs, what)
    return {
        "bytes_read": costs[OURS].requested,
        "bytes_kept": kept,
        "read_over_kept": costs[OURS].requested / kept,
        "bytes_from_device": costs[OURS].device,
        "bytes_from_device_plain": costs[PLAIN].device,
        "bytes_from_device_load_then_cut": costs[CUT].device,
        "seconds": median(times[OURS]) / 1000,
        "seconds_plain": median(times[PLAIN]) / 1000,
        "seconds_load_then_cut": median(times[CUT]) / 1000,
        "seconds_noted": median(times[NOTED]) / 1000,
        "seconds_again": median(times[AGAIN]) / 1000,
        "seconds_over_plain": ratio(times[OURS], times[PLAIN]).to_dict(),
        "seconds_noted_over_plain": ratio(times[NOTED], times[PLAIN]).to_dict(),
        "seconds_again_over_plain": ratio(times[AGAIN], times[PLAIN]).to_dict(),
        "peak_mb": costs[OURS].peak_mb,
        "peak_mb_plain": costs[PLAIN].peak_mb,
        "peak_mb_load_then_cut": costs[CUT].peak_mb,
        "cached": cached,
        "clock": clock,
        "rounds": rounds,
        "short": short,
    }


@dataclass(frozen=True)
class Cost:
    """Bytes that were asked for, bytes that came from the device, memory at its peak above the start."""

    requested: int  # by read calls and by tensors of `keep_layers`; of what others map, nobody is told
    device: int
    peak_mb: float


class Load:
    """Load a checkpoint from a cold cache or a warm one, as for the first time or again, and look at all of it."""

    def __init__(self, load: Callable[[], Any], folder: Path, *, cold: bool, forgets: str = "") -> None:
        self._load, self._folder, self._cold, self._forgets = load, folder, cold, forgets

    def prepare(self, _step: int) -> None:
        """Take the weight files out of the page cache, and forget what is known of their model."""
        from hf_layerdrop.pruning import plan as cuts

        gc.collect()
        if self._forgets:
            cuts.forget()
        if self._forgets == "all":
            shutil.rmtree(os.environ["HF_ASSETS_CACHE"], ignore_errors=True)
        for file in self._folder.glob("*.safetensors") if self._cold else ():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def run(self) -> float:
        """Return a number that depends on every page of the weights."""
        return sum(
            float(weight.detach().view(-1)[::VALUES_A_PAGE].double().sum()) for weight in self._load().parameters()
        )


def _contenders(folder: Path, layers: int, hidden: int, keep: int, *, cold: bool) -> dict[str, Load]:
    from transformers import BertForSequenceClassification

    from hf_layerdrop import LayerDropBertForSequenceClassification as LayerDropBert
    from hf_layerdrop import prune_layers

    whole, plain = folder / "whole", folder / "plain"
    bert_classifier(layers, hidden).save_pretrained(whole)
    LayerDropBert.from_pretrained(whole, keep_layers=keep).save_pretrained(plain)

    def load_then_cut() -> BertForSequenceClassification:
        model = BertForSequenceClassification.from_pretrained(whole)
        prune_layers(model, keep)
        return model

    def keep_layers() -> BertForSequenceClassification:
        return LayerDropBert.from_pretrained(whole, keep_layers=keep)

    return {
        OURS: Load(keep_layers, whole, cold=cold, forgets="all"),
        NOTED: Load(keep_layers, whole, cold=cold, forgets="what the process knows"),
        PLAIN: Load(lambda: BertForSequenceClassification.from_pretrained(plain), plain, cold=cold),
        CUT: Load(load_then_cut, whole, cold=cold),
        AGAIN: Load(keep_layers, whole, cold=cold),
    }


def _check_same(sums: dict[str, float]) -> None:
    if len(set(sums.values())) > 1:
        raise AssertionError(f"the contenders have other weights: {sums}")


def _cost(load: Load) -> Cost:
    load.prepare(0)
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but not given back, would hide some of the next use
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before, start = _counters(), _memory_mb("VmRSS")
    with _recorded() as asked:
        load.run()
    after = _counters()
    requested = after["rchar"] - before["rchar"] + sum(tensor.nbytes for tensor in asked)
    return Cost(requested, after["read_bytes"] - before["read_bytes"], _memory_mb("VmHWM") - start)


@contextmanager
def _recorded() -> Iterator[list[Any]]:
    """Note which tensors are asked for while ``keep_layers`` loads; they are mapped, and no read call shows them."""
    from hf_layerdrop.checkpoints.weight_slices import WeightSlice

    asked: list[Any] = []
    read = WeightSlice.__getitem__

    def recorded(part: WeightSlice, index: Any) -> Any:
        asked.append(part.info)
        return read(part, index)

    WeightSlice.__getitem__ = recorded  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        WeightSlice.__getitem__ = read  # type: ignore[method-assign]


def _counters() -> dict[str, int]:
    """Read what the system counts of this process: bytes asked for by read calls, bytes fetched from devices."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in (line.split(":") for line in lines)}


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _weight_bytes(folder: Path) -> int:
    from hf_layerdrop.checkpoints.headers import read_checkpoint

    return sum(tensor.nbytes for tensor in read_checkpoint(folder).tensors.values())


def _print_table(times: dict[str, list[float]], costs: dict[str, Cost], what: str) -> None:
    print(f"Loading {what}.\n")
    print("| what | seconds, median | over plain (95 % interval) | asked for, MB | from the device, MB | peak, MB |")
    print("| :--- | ---: | :--- | ---: | ---: | ---: |")
    for name, cost in costs.items():
        asked = f"{cost.requested / 1e6:.1f}" if name in (OURS, NOTED, AGAIN) else "mapped"
        print(
            f"| {name} | {median(times[name]) / 1000:.3f} | {ratio(times[name], times[PLAIN])} | {asked} "
            f"| {cost.device / 1e6:.1f} | {cost.peak_mb:.0f} |"
        )
    print()
