"""Training steps at rates 0 to 0.5, eager and compiled by region, beside models that are cut to the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu._device import BUILDERS, Batch, Cuts, beside, in_turn, model_and_batch
from benchmarks.gpu.part import Measurement
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_rates, set_step
from hf_layerdrop.architectures.stacks import find_stacks

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """Eager steps of each model at each rate, then compiled ones."""
    for compiled in (False, True):
        for name in BUILDERS:
            contest: list[Contest] = []
            for rate in RATES[::5] if short else RATES[::2] if compiled else RATES:
                what = f"{name}, rate {rate}{', compiled' if compiled else ''}"
                yield what, partial(_measure, contest, name, rate, compiled, device, short)


class Contest:
    """A model with LayerDrop and one that is cut, each with its optimizer; the learning rate is 0: both stay equal."""

    def __init__(self, name: str, compiled: bool, device: str, short: bool) -> None:
        self.device = device
        self.ours, self.batch = model_and_batch(name, device, short)
        self.other = deepcopy(self.ours)
        inject_layerdrop(self.ours, LayerDropConfig(0.0, seed=0))
        self.cuts = Cuts(self.other)
        if compiled:
            for model in (self.ours, self.other):
                for stack in find_stacks(model).values():
                    for layer in stack.layers(model):
                        layer.compile(backend="inductor" if device.startswith("cuda") else "eager")
        self.steps = {model: _step(model, self.batch) for model in (self.ours, self.other)}

    def compare(self, rate: float, rounds: int) -> dict[str, Any]:
        """Time both at this rate, at the same draws; say whether their losses are the same."""
        set_rates(self.ours, rate)
        losses: dict[str, list[torch.Tensor]] = {"ours": [], "cut": []}

        def ready(name: str, number: int) -> Callable[[], None]:
            set_step(self.ours, number)
            model = self.ours
            if name == "cut":
                draws = layerdrop_state(self.ours).draws
                self.cuts.to({stack: draw.draw() for stack, draw in draws.items()})
                model = self.other
            return lambda: losses[name].append(self.steps[model]())

        contenders = {name: partial(ready, name) for name in losses}
        times = in_turn(contenders, rounds, self.device, warm_up=5)
        pairs = zip(torch.stack(losses["ours"]).tolist(), torch.stack(losses["cut"]).tolist(), strict=True)
        return beside(times, "ours", "cut") | {"losses_differ_by": max(abs(one - other) for one, other in pairs)}


def _step(model: PreTrainedModel, batch: Batch) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def step() -> torch.Tensor:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _measure(
    contest: list[Contest], name: str, rate: float, compiled: bool, device: str, short: bool
) -> dict[str, Any]:
    """Build both models once for all rates of a name."""
    if not contest:
        contest.append(Contest(name, compiled, device, short))
    return contest[0].compare(rate, 2 if short else 30)
