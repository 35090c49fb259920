"""The rates of all stacks of a model, learned while it trains; see the package's docstring for what is done and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.samplers.learned.credits import Credits
from hf_layerdrop.samplers.learned.measurements import Measurements, Reading
from hf_layerdrop.samplers.learned.rates_from_shares import rates_from_shares
from hf_layerdrop.samplers.learned.scorer import Scorer

Rates = Mapping[str, Sequence[float]]


class RateLearner:
    """Learn the rates of the stacks of a model.

    Args:
        rates: The rates to start from, by stack, one a layer. Their mean is the target.
        always_kept: The layers of each stack that are never dropped.

    Attributes:
        factor: What a schedule scales the target by.
    """

    def __init__(self, rates: Rates, always_kept: Mapping[str, frozenset[int]]) -> None:
        self.factor = 1.0
        self._target_was_set = False
        self._totals = {name: sum(values) for name, values in rates.items()}
        self._depths = {name: len(values) for name, values in rates.items()}
        self._droppable = {
            name: [layer for layer in range(depth) if layer not in always_kept[name]]
            for name, depth in self._depths.items()
        }
        self._scorers = {
            name: Scorer([rates[name][layer] for layer in layers]) for name, layers in self._droppable.items()
        }
        # Where the layers of each stack begin, counted over all stacks: they share the loss.
        depths = list(self._depths.values())
        self._first = {name: sum(depths[:number]) for number, name in enumerate(self._depths)}
        self._credits = Credits(sum(depths))
        self._measurements = Measurements(sum(depths))
        self._pending: Reading | None = None
        self._was_shown_a_loss = False

    def shares(self, name: str) -> list[float]:
        """Return the softmax of a stack, one share a layer: the larger, the less needed; 0 if never dropped."""
        shares = [0.0] * self._depths[name]
        for layer, share in zip(self._droppable[name], self._scorers[name].shares, strict=True):
            shares[layer] = share
        return shares

    def rates(self, name: str, *, scheduled: bool = True) -> list[float]:
        """Return the rates of a stack, one a layer; their mean is the target, which a schedule may scale."""
        return rates_from_shares(self.shares(name), self._totals[name] * (self.factor if scheduled else 1.0))

    def set_target(self, rates: Rates) -> None:
        """Hold the mean of these rates from now on, in the stacks that are named."""
        self._totals = {**self._totals, **{name: sum(values) for name, values in rates.items()}}
        self._target_was_set = True

    def note_draw(self, name: str, rates: Sequence[float], mask: Sequence[bool]) -> None:
        """Note what was drawn for a forward of a stack, and with which rates."""
        self._measurements.note_draw(self._first[name], rates, mask)

    def note_activation(self, name: str, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Measure what a layer that ran did to the hidden states; the numbers stay on their device."""
        self._measurements.note_activation(self._first[name] + layer, before, after)

    def note_loss(self, loss: torch.Tensor) -> None:
        """Take the loss of all forwards since the last one: that of a micro-step."""
        self._measurements.note_loss(loss)
        self._was_shown_a_loss = True

    def end_step(self) -> None:
        """Learn from the step before the one that ends, and send off what this one has measured."""
        if self._pending is not None:
            self._learn(self._pending)
        self._pending = self._measurements.send_off()

    def check_losses_come(self) -> None:
        """Find out whether forwards dropped layers, but no loss was ever shown: nothing would be learned.

        Raises:
            LayerDropStateError: If so.
        """
        if self._measurements.lack_a_loss and not self._was_shown_a_loss:
            raise LayerDropStateError(
                "sampler='learned' was not shown the loss of the step before; call "
                "hf_layerdrop.learn_rates(model, loss) after each backward pass, or train with Trainer."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learned and measured, at the end of a step, as JSON values."""
        return {
            "scorers": {name: scorer.to_json() for name, scorer in self._scorers.items()},
            "credits": self._credits.state_dict(),
            "pending": self._pending.to_json() if self._pending is not None else None,
            "factor": self.factor,
            **({"totals": dict(self._totals)} if self._target_was_set else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            LayerDropConfigError: If it is of a model of other depths, or not complete.
        """
        try:
            droppable = {name: len(scorer["offset"]) for name, scorer in state["scorers"].items()}
            own = {name: len(layers) for name, layers in self._droppable.items()}
            if droppable != own:
                raise LayerDropConfigError(
                    f"The saved drop rates were learned for {droppable} layers, but {own} of this model may be "
                    "dropped; go on with the same model and the same never_drop."
                )
            for name, scorer in self._scorers.items():
                scorer.load_json(state["scorers"][name])
            self._credits.load_state_dict(state["credits"])
            self._pending = state["pending"] and Reading.from_json(state["pending"])
            if totals := state.get("totals"):
                self._totals.update(totals)
                self._target_was_set = True
            self.factor = state.get("factor", self.factor)
        except (AttributeError, KeyError, TypeError) as error:
            raise LayerDropConfigError(
                f"The saved state of the learned drop rates cannot be read ({error!r}); give what state_dict() gave."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle after the copy to the host: its event stays in this process."""
        if self._pending is not None:
            self._pending.arrived()
        return self.__dict__

    def _learn(self, reading: Reading) -> None:
        # Trainer divides the loss of each micro-step by their number.
        scale = len(reading.outcomes)
        for loss, outcome in zip(reading.losses(), reading.outcomes, strict=True):
            self._credits.update(loss * scale, outcome.deviations, outcome.variances)
        costs = self._credits.scaled
        measured = dict(zip(reading.measured, reading.norms(), strict=True))
        for name, scorer in self._scorers.items():
            layers = [self._first[name] + layer for layer in self._droppable[name]]
            for position, layer in enumerate(layers):
                if layer in measured:
                    scorer.note_activation(position, *measured[layer])
            if layers:
                scorer.improve([self._totals[name] * costs[layer] for layer in layers])
