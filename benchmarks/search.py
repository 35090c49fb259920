"""Exhaustive search of 6 out of 12 layers: prefixes shared, against a loop that runs every sub-network alone.

Both score all sets by loss and accuracy on the same batches of a BERT-shaped model with random weights, and have to
give the same numbers to the bit. ``peak_mb`` is by how much the memory of the process grows at most while the shared
search runs, and ``held_mb`` what the remembered layer outputs take of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._rounds import CLOCKS


def run(
    layers: int = 12,
    keep: int = 6,
    hidden: int = 128,
    batches: int = 2,
    rows: int = 24,
    length: int = 64,
    memory_limit_mb: float = 128.0,
    seed: int = 0,
    clock: str = "wall",
) -> dict[str, Any]:
    """Time both, and compare what they give; the clock ``cpu`` counts what this process computed, beside others."""
    from hf_layerdrop.search.space import Space

    model, data = _model(layers, hidden, seed), _data(batches, rows, length, seed)
    space = Space({"encoder": layers}, {"encoder": keep})
    sets = list(space.every_set())
    print(
        f"{len(sets)} sub-networks of {keep} of {layers} layers, width {hidden}, {batches} batches of {rows} x {length}"
    )
    _score_alone(model, data, sets[:10])  # buffers of the first calls are no part of the comparison

    now = CLOCKS[clock]
    shared = _search_shared(model, data, sets, memory_limit_mb, now)
    print(f"shared: {shared['seconds']:.1f} s, {shared['layer_forwards']} layer forwards a batch")
    start = now()
    scores = _score_alone(model, data, sets)
    seconds_naive = now() - start
    print(f"each alone: {seconds_naive:.1f} s, {len(sets) * keep} layer forwards a batch")
    same = shared.pop("scores") == scores
    print(f"scores are {'the same to the bit' if same else 'DIFFERENT'}")
    return {
        **shared,
        "sub_networks": len(sets),
        "layer_forwards_naive": len(sets) * keep,
        "seconds_naive": seconds_naive,
        "share_of_naive_seconds": shared["seconds"] / seconds_naive,
        "memory_limit_mb": memory_limit_mb,
        "clock": clock,
        "same_scores": same,
    }


def _search_shared(
    model: Any, data: list[Any], sets: list[Any], memory_limit_mb: float, now: Callable[[], float] = CLOCKS["wall"]
) -> dict[str, Any]:
    from hf_layerdrop.evaluation.evaluate import Evaluator

    results: list[Any] = []
    before = _start_of_peak()
    start = now()
    evaluator = Evaluator(model, data, memory_limit=int(memory_limit_mb * 1e6))
    evaluator.measure_in_turn(sets, results.extend)
    return {
        "seconds": now() - start,
        "layer_forwards": sum(result.layer_forwards for result in results),
        "peak_mb": max(_memory_mb("VmHWM") - before, evaluator.peak / 1e6),
        "held_mb": evaluator.peak / 1e6,
        "scores": {_key(result.keep_layers): dict(result.metrics) for result in results},
    }


def _score_alone(model: Any, data: list[Any], sets: list[Any]) -> dict[Any, Any]:
    """Score each sub-network by itself: cut in place, run all batches, take the metric."""
    import torch

    from hf_layerdrop.evaluation.metrics import load_metric
    from hf_layerdrop.pruning.prune import Cutter

    cutter, metric, scores = Cutter(model), load_metric("accuracy"), {}
    for kept in sets:
        with torch.no_grad(), cutter.sub_network(kept):
            outputs = [model(**batch) for batch in data]
        loss = torch.cat([output.loss.repeat(len(output.logits)) for output in outputs]).double().mean()
        predictions = torch.cat([output.logits for output in outputs]).argmax(-1)
        right = metric.compute(predictions=predictions, references=torch.cat([batch["labels"] for batch in data]))
        scores[_key(kept)] = {**right, "loss": float(loss)}
    return scores


def _model(layers: int, hidden: int, seed: int) -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden,
        initializer_range=0.1,
    )
    return BertForSequenceClassification(config).eval()


def _data(batches: int, rows: int, length: int, seed: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(5, 1000, (rows, length), generator=generator),
            "attention_mask": torch.ones(rows, length, dtype=torch.long),
            "labels": torch.randint(0, 2, (rows,), generator=generator),
        }
        for _ in range(batches)
    ]


def _key(kept: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(kept["encoder"])


def _start_of_peak() -> float:
    """Set the high-water mark of memory back to what is used now, where the system can, and return that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _memory_mb("VmHWM")
    return _memory_mb("VmRSS")


def _memory_mb(field: str) -> float:
    """Read a figure of this process's memory; 0 where there is no /proc."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0
