"""Change the rates of injected models: for good by `set_rates`, for a while by `scale_rates`, as schedules do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_layerdrop.architectures.residuals import check_residuals
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.injection.changes import all_or_nothing
from hf_layerdrop.injection.inject import check_lenders, injected_model, layerdrop_state, write_down
from hf_layerdrop.injection.injected import injected_models, states_of
from hf_layerdrop.injection.open_blocks import for_good
from hf_layerdrop.injection.state import LayerDropState
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.config_values import as_rate
from hf_layerdrop.samplers.depth_list import describe


def set_rates(model: nn.Module, rates: float | Sequence[float] | Mapping[str, float | Sequence[float]]) -> None:
    """Use other rates from the next forward on, in place; the sampler, the shape and ``never_drop`` stay.

    They take the place of the rates that were configured, in everything that follows: a schedule scales them from its
    next step on, and they are what is saved. Stacks that a dict does not name keep their rates. Where ``model`` holds
    several injected models, all of them are reached, and a dict may name a stack of one by its path:
    ``{"query.encoder": 0.1}``. Where rates are learned, the mean of the given ones is the new target, and the learning
    goes on. Where a list of depths is trained, 0 switches it off, and its own rates switch it on again.

    Raises:
        LayerDropConfigError: If a rate is outside of [0, 1], their number does not fit a stack, or a layer would be
            dropped from which another borrows.
        LayerDropStateError: If LayerDrop is not injected, or this is called within a block of `sub_network`.
    """
    injected_model(model)
    states, roots = states_of(model), injected_models(model).values()
    _check_named(rates, states)
    changed = {path: _changed_rates(state, _rates_for(rates, path, state)) for path, state in states.items()}
    for (path, state), root in zip(states.items(), roots, strict=True):
        if state.config.scale == "kept":
            newly = [name for name, new in changed[path].items() if any(new) and not any(state.rates[name])]
            check_residuals(root, {name: stack for name, stack in find_stacks(root).items() if name in newly})
    held = [part for state in states.values() for part in state.parts]
    with for_good("set_rates", *roots), all_or_nothing(*(root.config for root in roots), *held):
        for (path, state), root in zip(states.items(), roots, strict=True):
            if not changed[path]:
                continue
            state.set_rates(changed[path])
            saved = saved_provenance(root.config)
            write_down(root, **({} if saved.get("trained_with") else {"trained_with": state.config.to_dict()}))


def _check_named(rates: Any, states: Mapping[str, LayerDropState]) -> None:
    """Refuse the name of a stack that none of several models has; an only one says itself what it has."""
    if len(states) == 1 or not isinstance(rates, Mapping):
        return
    names = {f"{path}.{name}": name for path, state in states.items() for name in state.depths}
    if unknown := sorted(set(map(str, rates)) - set(names) - set(names.values())):
        raise LayerDropConfigError(f"rate names the stack {unknown[0]!r}; the module has {', '.join(names)}.")


def _rates_for(rates: Any, path: str, state: LayerDropState) -> Any:
    """Return which of the given rates are those of the model at ``path``, under its own names of its stacks."""
    if not isinstance(rates, Mapping) or not path:
        return rates
    by_stack = {name: rates[name] for name in state.depths if name in rates}
    return {**by_stack, **{name: rates[full] for name in state.depths if (full := f"{path}.{name}") in rates}}


def _changed_rates(state: LayerDropState, rates: Any) -> dict[str, tuple[float, ...]]:
    """Return the rates of each layer of the stacks that change.

    Raises:
        LayerDropConfigError: If they do not fit.
    """
    if state.config.depths is not None:
        return _changed_list(state, rates)
    given = rates.values() if isinstance(rates, Mapping) else [rates]
    shaped = not any(isinstance(rate, tuple) for rate in map(as_rate, given))
    settings = {**state.config.to_dict(), "rate": rates, "shape": state.config.shape if shaped else "uniform"}
    by_stack = LayerDropConfig.from_dict(settings).rates_for(state.depths)
    changed = {name: by_stack[name] for name in (rates if isinstance(rates, Mapping) else by_stack)}
    check_lenders(state.lent, state.config, {**state.rates, **changed})
    return changed


def _changed_list(state: LayerDropState, rates: Any) -> dict[str, tuple[float, ...]]:
    """Return the rates of a model that trains a list of depths: 0, or those of the list, all lower by one factor."""
    own = state.config.rates_for(state.depths)
    by_stack = rates if isinstance(rates, Mapping) else dict.fromkeys(own, rates)
    wanted = {name: as_rate(rate) for name, rate in by_stack.items()}
    full = {name: rate if isinstance(rate, tuple) else (rate,) * len(own[name]) for name, rate in wanted.items()}
    total = sum(map(sum, own.values()))
    factor = sum(map(sum, full.values())) / total if total else 0.0
    scaled = {name: tuple(min(factor, 1.0) * rate for rate in layers) for name, layers in own.items()}
    if full.keys() != own.keys() or any(
        len(full[name]) != len(layers) or any(abs(a - b) > 1e-6 for a, b in zip(full[name], layers, strict=True))
        for name, layers in scaled.items()
    ):
        raise LayerDropConfigError(
            f"set_rates got {rates!r}, but this model trains the depths {describe(state.config.depths or ())}, from "
            "which its rates follow: give 0 to train it whole, inject another list, or use a schedule."
        )
    return scaled


def scale_rates(model: nn.Module, factor: float) -> None:
    """Use the rates of the config, or of `set_rates`, times ``factor`` from the next forward on: what a schedule does.

    What is saved with the model are the rates that are scaled, which a resumed schedule scales again.

    Raises:
        LayerDropConfigError: If ``factor`` is outside of [0, 1].
    """
    try:
        fits = 0 <= factor <= 1
    except TypeError:  # a schedule without a return gives None
        fits = False
    if not fits:
        raise LayerDropConfigError(
            f"A schedule gave the factor {factor!r}; it must be from 0 to 1, at every share of training."
        )
    layerdrop_state(model).scale_rates(factor)
