"""What a model with LayerDrop needs of Trainer, without importing it: that takes seconds, and only training pays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.call_stack import callers
from hf_layerdrop.injection.injected import injected_models, states_of

if TYPE_CHECKING:
    from transformers import Trainer


def calling_trainer() -> Trainer:
    """Return the Trainer that called a callback: it hands its callbacks everything but itself.

    Raises:
        LayerDropStateError: If no Trainer is among the callers.
    """
    from transformers import Trainer

    for frame in callers():
        if isinstance(found := frame.f_locals.get("self"), Trainer):
            return found
    raise LayerDropStateError("This callback was not called by a Trainer; add it to Trainer(callbacks=[...]).")


def learn(module: nn.Module, loss: torch.Tensor, *, step_ended: bool = True) -> None:
    """Show a loss to what learns the drop rates, and write the rates into the configs, which are saved with the models.

    Raises:
        LayerDropStateError: If no rates of any injected model inside of ``module`` are learned.
    """
    states = list(states_of(module).values())
    learning = [state.learner is not None for state in states]
    for state, model, learns in zip(states, injected_models(module).values(), learning, strict=True):
        if learns or not any(learning):
            state.learn(loss, step_ended=step_ended)
            if step_ended and (saved := getattr(model.config, "hf_layerdrop", None)):
                saved.update(state.learned())


def log_of(states: Mapping[str, Any]) -> dict[str, float]:
    """Return what is logged of models by path: the mean rate of all layers, and of several each under its path."""
    logs = {path: state.take_log() for path, state in states.items()}
    if len(logs) == 1:
        return next(iter(logs.values()))
    layers = {path: sum(state.depths.values()) for path, state in states.items()}
    mean = sum(log["layerdrop_rate"] * layers[path] for path, log in logs.items()) / sum(layers.values())
    renamed = {
        f"layerdrop_{path.replace('.', '_')}_{key.removeprefix('layerdrop_')}": value
        for path, log in logs.items()
        for key, value in log.items()
    }
    return {"layerdrop_rate": mean, **renamed}
