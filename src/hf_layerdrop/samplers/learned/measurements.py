"""What training tells about the layers while it runs: kept on its device, and brought to the host without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass
class Outcome:
    """The drops behind one loss: how many more there were of each layer than expected, and their variance."""

    deviations: list[float]
    variances: list[float]


@dataclass
class Reading:
    """What one optimizer step measured, on its way to the host or there.

    Attributes:
        outcomes: One for each loss.
        measured: The layers whose activations were measured.
        values: The losses, and three norms for each of these layers: of its input, its output, their difference.
        copied: The event that ends the copy; None where there is nothing to wait for.
    """

    outcomes: list[Outcome]
    measured: list[int]
    values: torch.Tensor
    copied: Any = None

    def arrived(self) -> Reading:
        """Wait for the copy, if it is still under way."""
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None
        return self

    def losses(self) -> list[float]:
        """Return the losses, one an outcome."""
        return self.arrived().values[: len(self.outcomes)].tolist()

    def norms(self) -> list[list[float]]:
        """Return the three norms of each measured layer."""
        return self.arrived().values[len(self.outcomes) :].view(-1, 3).tolist()

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        outcomes = [vars(outcome) for outcome in self.outcomes]
        return {"outcomes": outcomes, "measured": self.measured, "values": self.arrived().values.tolist()}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Reading:
        """Read what `to_json` wrote."""
        values = torch.tensor(state["values"], dtype=torch.float32, device="cpu")
        return cls([Outcome(**outcome) for outcome in state["outcomes"]], state["measured"], values)


class Measurements:
    """Gather draws, activations and losses of the step that runs; layers are counted over all stacks."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._losses: list[torch.Tensor] = []
        self._outcomes: list[Outcome] = []
        self._norms: dict[int, torch.Tensor] = {}
        self._drops = self._no_drops()

    def note_draw(self, first: int, rates: Sequence[float], mask: Sequence[bool]) -> None:
        """Note the mask of a forward of the stack whose layers are counted from ``first`` on."""
        for layer, (rate, kept) in enumerate(zip(rates, mask, strict=True), first):
            self._drops.deviations[layer] += (not kept) - rate
            self._drops.variances[layer] += rate * (1 - rate)

    def note_activation(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Measure what a layer that ran did to the hidden states."""
        with torch.no_grad():
            wide = torch.promote_types(after.dtype, torch.float32)  # sums of squares overflow half precision
            parts = (before, after, after - before)
            norms = torch.stack([torch.linalg.vector_norm(part, dtype=wide) for part in parts]).float()
            self._norms[layer] = self._norms[layer] + norms if layer in self._norms else norms

    def note_loss(self, loss: torch.Tensor) -> None:
        """Take the loss of all forwards since the last one."""
        if any(self._drops.variances):
            self._losses.append(loss.detach().float().mean())
            self._outcomes.append(self._drops)
        self._drops = self._no_drops()

    @property
    def lack_a_loss(self) -> bool:
        """Whether forwards dropped layers, but no loss was shown since the step began."""
        return any(self._drops.variances) and not self._losses

    def send_off(self) -> Reading | None:
        """Average over ranks what the step measured, start its copy to the host, and begin anew."""
        if not self._losses:
            self.forget()
            return None
        losses, measured = torch.stack(self._losses), sorted(self._norms)
        norms = [self._norms[layer].to(losses.device, non_blocking=True) for layer in measured]
        values = torch.cat([losses, *norms])
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            values /= distributed.get_world_size()
            distributed.all_reduce(values)  # an accelerator queues it: the host does not wait
        reading = Reading(self._outcomes, measured, values.to("cpu", non_blocking=True))
        if values.device.type != "cpu":
            reading.copied = torch.Event(values.device)
            reading.copied.record()
        self.forget()
        return reading

    def _no_drops(self) -> Outcome:
        return Outcome([0.0] * self._layers, [0.0] * self._layers)
