"""Several injected models of one module as one: what is asked of all is done in each.

Stacks and draws are named by the path of their model and their own name: ``query.encoder``, ``passage.encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.calling_trainer import log_of
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.injection.state import LayerDropState


class LayerDropStates:
    """The states of all injected models inside of a module.

    Attributes:
        states: They, by the paths of the models.
    """

    def __init__(self, states: Mapping[str, LayerDropState]) -> None:
        self.states = dict(states)

    @property
    def rates(self) -> dict[str, list[float]]:
        """The rates in use, one a layer, by path and stack."""
        return self._merged({path: state.rates for path, state in self.states.items()})

    @property
    def depths(self) -> dict[str, int]:
        """The depths by path and stack."""
        return self._merged({path: state.depths for path, state in self.states.items()})

    @property
    def draws(self) -> dict[str, StackDraw]:
        """All draws by path and name."""
        return self._merged({path: state.draws for path, state in self.states.items()})

    @property
    def drops(self) -> bool:
        """Whether any rate is above 0."""
        return any(state.drops for state in self.states.values())

    @property
    def micro_step(self) -> int:
        """The micro-step that all are told."""
        return next(iter(self.states.values())).micro_step

    def draws_of(self, stack: str) -> list[StackDraw]:
        """Return the draws of a stack, given as its path and name, one for each structure."""
        return [draw for path, state in self.states.items() for draw in state.draws_of(stack.removeprefix(f"{path}."))]

    def set_rates(self, rates: Mapping[str, Sequence[float]]) -> None:
        """Use these rates, one a layer, in the stacks that are named by path and name."""
        for path, state in self.states.items():
            state.set_rates({name: rates[f"{path}.{name}"] for name in state.depths if f"{path}.{name}" in rates})

    def scale_rates(self, factor: float) -> None:
        """Use the rates that were set, or learned, times ``factor`` in all models."""
        for state in self.states.values():
            state.scale_rates(factor)

    def set_seed(self, seed: int) -> None:
        """Draw from this seed from now on; models in different places draw apart all the same."""
        for state in self.states.values():
            state.set_seed(seed)

    def begin_step(self, step: int, micro_step: int = 0) -> None:
        """Set the counters of all models."""
        for state in self.states.values():
            state.begin_step(step, micro_step)

    def learn(self, loss: torch.Tensor, *, step_ended: bool) -> None:
        """Show a loss to the models whose rates are learned.

        Raises:
            LayerDropStateError: If there is none.
        """
        learning = [state for state in self.states.values() if state.learner is not None]
        if not learning:
            raise LayerDropStateError(
                "The rates of none of these models are learned; inject LayerDropConfig(rate, sampler='learned')."
            )
        for state in learning:
            state.learn(loss, step_ended=step_ended)

    def learned(self) -> dict[str, dict[str, list[float]]]:
        """Return what was learned by path and stack; empty if no rates are learned."""
        found: dict[str, dict[str, list[float]]] = {}
        for path, state in self.states.items():
            for key, values in state.learned().items():
                found.setdefault(key, {}).update({f"{path}.{name}": value for name, value in values.items()})
        return found

    def take_log(self) -> dict[str, float]:
        """Return the mean rate of all layers, and the log of each model under its path."""
        return log_of(self.states)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the counters of all models have come, as JSON values."""
        return {"models": {path: state.state_dict() for path, state in self.states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; nothing is changed if a model's part does not fit.

        Raises:
            LayerDropConfigError: If it is of other models, or one of them has other stacks or depths.
        """
        saved = state.get("models", {})
        if set(saved) != set(self.states):
            raise LayerDropConfigError(
                f"The saved LayerDrop state is of models at {', '.join(map(repr, saved)) or 'no path'}, but this one "
                f"has them at {', '.join(map(repr, self.states))}; give what its own state_dict() returned."
            )
        for path, own in self.states.items():
            own.check_fits(saved[path])
        for path, own in self.states.items():
            own.load_state_dict(saved[path])

    def _merged(self, by_path: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{path}.{name}": value for path, values in by_path.items() for name, value in values.items()}
