"""What an injected model knows: its config, the draws of its stacks, and what was learned of their rates.

A plain Python object that hangs on the model as an attribute: nothing of it is in the state dict, and all of it is
copied and pickled with the model. What one stack draws stands in `stack_draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.ranks.agreement import Agreement
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.learned.learner import RateLearner

STATE_ATTRIBUTE = "_layerdrop"


class LayerDropState:
    """All of it for one model: the config, a draw for each stack, and what has to be put back on removal."""

    def __init__(
        self,
        config: LayerDropConfig,
        depths: Mapping[str, int],
        groups: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> None:
        """Prepare the draws; ``groups`` says by stack and structure how many parts each layer has that are dropped."""
        self.config = config
        agreement = Agreement()
        self.draws = {
            draw.name: draw
            for name, rates in config.rates_for(depths).items()
            for draw in _draws_of(
                name,
                rates,
                config,
                (groups or {}).get(name, {}),
                has_sibling=len(depths) > 1,
                agreement=agreement,
            )
        }
        self.depths = dict(depths)
        self.micro_step = 0
        self.originals: dict[str, Any] = {}
        self.lent: dict[str, tuple[int, ...]] = {}  # by stack, layers that others borrow from
        self.learner: RateLearner | None = None
        if config.sampler == "learned":
            always_kept = {name: config.always_kept(name, depth) for name, depth in depths.items()}
            self.learner = RateLearner(self.rates, always_kept)
            for draw in self.draws.values():
                draw.learner = self.learner
        self.set_seed(config.seed if config.seed is not None else 0)

    @property
    def rates(self) -> dict[str, list[float]]:
        """The rates in use, by stack, one a layer."""
        return {draw.stack: list(draw.rates) for draw in self.draws.values()}

    @property
    def drops(self) -> bool:
        """Whether any rate is above 0."""
        return any(any(rates) for rates in self.rates.values())

    def draws_of(self, stack: str) -> list[StackDraw]:
        """Return the draws of a stack, one for each structure."""
        return [draw for draw in self.draws.values() if draw.stack == stack]

    def set_rates(self, rates: Mapping[str, Sequence[float]]) -> None:
        """Use these rates, one a layer, in the stacks that are named; where rates are learned, hold their mean."""
        if self.learner is not None:
            self.learner.set_target(rates)
            self._use_learned_rates(agreed=False)
            return
        for name, values in rates.items():
            for draw in self.draws_of(name):
                draw.set_rates(values)

    def scale_rates(self, factor: float) -> None:
        """Use the configured rates, or those that were learned, times ``factor``; every rank has to do the same."""
        if self.learner is not None:
            self.learner.factor = factor
            self._use_learned_rates()
            return
        rates = self.config.rates_for(self.depths)
        for draw in self.draws.values():
            draw.set_rates([rate * factor for rate in rates[draw.stack]], agreed=True)

    def learn(self, loss: torch.Tensor, *, step_ended: bool) -> None:
        """Show the loss of a micro-step to what learns the rates, which are fixed until the step has ended."""
        if self.learner is None:
            raise LayerDropStateError(
                f"The rates of this model are not learned, since its sampler is {self.config.sampler!r}; inject "
                "LayerDropConfig(rate, sampler='learned') to learn them."
            )
        self.learner.note_loss(loss)
        if step_ended:
            self.learner.end_step()
            self._use_learned_rates()

    def learned(self) -> dict[str, dict[str, list[float]]]:
        """Return what is written into the config of a model whose rates are learned; empty for any other."""
        if self.learner is None:
            return {}
        rates = {name: self.learner.rates(name, scheduled=False) for name in self.draws}
        shares = {name: self.learner.shares(name) for name in self.draws}
        return {"rates": rates, "learned_rates": rates, "learned_shares": shares}

    def load_learned(self, saved: Mapping[str, Any]) -> None:
        """Go on learning from what the learner's ``state_dict`` returned."""
        if self.learner is not None:
            self.learner.load_state_dict(saved)
            self._use_learned_rates(agreed=False)

    def _use_learned_rates(self, *, agreed: bool = True) -> None:
        """Use the learned rates from the next forward on; every rank has learned the same ones."""
        if self.learner is not None:
            for name, draw in self.draws.items():
                draw.set_rates(self.learner.rates(name), agreed=agreed)

    def begin_step(self, step: int, micro_step: int = 0) -> None:
        """Set the counter of every stack to the first forward of a step, or of a micro-step of it."""
        if self.learner is not None and micro_step == 0:
            self.learner.check_losses_come()
        self.micro_step = micro_step
        for draw in self.draws.values():
            draw.begin_step(step, micro_step)

    def take_log(self) -> dict[str, float]:
        """Return the mean rate in use, and the mean number of layers that a forward has run since the last call."""
        rates = [rate for draw in self.draws.values() for rate in draw.rates]
        log = {"layerdrop_rate": sum(rates) / len(rates)}
        for name, draw in self.draws.items():
            key = f"layerdrop_{'' if len(self.depths) == 1 else draw.stack + '_'}{draw.structure}s_used"
            log[key] = draw.layers_run / draw.forwards if draw.forwards else float(draw.depth)
            draw.forwards = draw.layers_run = 0
            if self.learner is not None:
                log |= {f"layerdrop_{name}_rate_{layer}": rate for layer, rate in enumerate(draw.rates)}
        return log

    def set_seed(self, seed: int) -> None:
        """Draw from this seed from now on."""
        self.seed = seed
        for draw in self.draws.values():
            draw.set_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the counter has come, as JSON values: what a raw training loop saves and restores."""
        return {
            "seed": self.seed,
            "rates": self.rates,
            "counters": {name: [draw.step, draw.micro_step, draw.next_forward] for name, draw in self.draws.items()},
            **({"learned": self.learner.state_dict()} if self.learner is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, so that the next draws are those of the run that went on.

        Raises:
            LayerDropConfigError: If the state is of a model with other stacks or depths.
        """
        if missing := {"seed", "rates", "counters"} - set(state):
            raise LayerDropConfigError(
                f"The saved LayerDrop state has no {min(missing)!r}; give what its state_dict() returned."
            )
        depths = {name: len(rates) for name, rates in state["rates"].items()}
        if depths != self.depths:
            raise LayerDropConfigError(
                f"The saved LayerDrop state is of stacks {depths}, but this model has {self.depths}."
            )
        if self.learner is not None and "learned" not in state:
            raise LayerDropConfigError(
                "The saved LayerDrop state has no learned rates; give what state_dict() returned with "
                "sampler='learned', or inject another sampler."
            )
        if state["counters"].keys() != self.draws.keys():
            raise LayerDropConfigError(
                f"The saved LayerDrop state is of draws for {', '.join(state['counters'])}, but this model draws for "
                f"{', '.join(self.draws)}; inject the structure that it was trained with."
            )
        self.set_seed(state["seed"])
        self.set_rates(state["rates"])
        self.load_learned(state.get("learned", {}))
        for name, draw in self.draws.items():
            draw.go_to(*state["counters"][name])


def _draws_of(
    name: str, rates: Sequence[float], config: LayerDropConfig, groups: Mapping[str, Sequence[int]], **shared: Any
) -> list[StackDraw]:
    """Return the draws of a stack, one for each structure; that of whole layers comes first."""
    layers = [StackDraw(name, rates, config, **shared)] if "layer" in config.structures else []
    within = layers[0] if layers else None
    return layers + [
        StackDraw(name, rates, config, structure=structure, groups=counts, within=within, **shared)
        for structure, counts in groups.items()
    ]


def find_injected(model: nn.Module) -> nn.Module | None:
    """Return the injected model: ``model``, or the one that a wrapper (DDP, PEFT) holds; None if there is none."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((module for module in modules if STATE_ATTRIBUTE in module.__dict__), None)
