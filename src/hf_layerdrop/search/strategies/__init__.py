"""The strategies by name; each has a file of that name, with a function ``select``, and a ``rule`` if it asks no data.

This list knows no torch, so that the command line can name and check them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypedDict

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.search.space import MAX_SETS, Space

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_layerdrop.search.scoring import Problem
    from hf_layerdrop.search.selection import Layers

STRATEGIES: Mapping[str, str] = {
    "every_other": "the paper's first strategy: drop every n-th layer, at most half of them",
    "spread": "as far apart as the depth allows, first and last included",
    "first": "the first layers",
    "last": "the last layers",
    "random": "the best of some random sets",
    "exhaustive": "score every set: exact, and costly",
    "beam": "remove one layer after the other, follow the best few sets, and swap single layers of the best",
    "greedy_removal": "remove the layer that is missed least, one after the other",
    "greedy_addition": "add the layer that helps most, one after the other",
    "learned": "keep the layers whose learned drop rates are smallest; for models trained with sampler='learned'",
    "block_influence": "keep the layers that turn their input most (ShortGPT)",
    "angular_distance": "drop the run of layers across which the hidden state turns least",
    "leave_one_out": "keep the layers without which the output changes most",
    "weight_norm": "keep the layers with the largest weights",
    "activation_norm": "keep the layers that add most to the hidden state",
}

# What else a strategy can be told, each a whole number, and the least: keywords of its ``select``.
SETTINGS: Mapping[str, Mapping[str, int]] = {
    "random": {"samples": 1},
    "exhaustive": {"max_sub_networks": 1},
    "beam": {"width": 1, "swaps": 0},
}


class StrategySettings(TypedDict, total=False):
    """The same for a type checker."""

    samples: int
    max_sub_networks: int
    width: int
    swaps: int


# Above so many sets, a beam is followed by so many rounds of swaps at most: with both, 8 of 16 layers take less than a
# tenth of the layer forwards of all sets.
MANY_SETS = 5_000
SWAP_ROUNDS = 3


@dataclass(frozen=True)
class Proposal:
    """What a strategy found: sub-networks of the depth asked for, of which the best is chosen, and why."""

    sub_networks: list[Layers]
    importances: Mapping[str, tuple[float, ...]] | None = None


def find_strategy(name: str) -> str:
    """Return the name of a strategy as it is listed; ``greedy-removal`` is fine as well.

    Raises:
        LayerDropConfigError: If there is none; the message names the nearest.
    """
    known = str(name).strip().lower().replace("-", "_")
    if known in STRATEGIES:
        return known
    near = difflib.get_close_matches(known[:64], STRATEGIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise LayerDropConfigError(f"strategy is {name!r}, which is not known; {hint}Known: {', '.join(STRATEGIES)}.")


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check the settings of a strategy.

    Raises:
        LayerDropConfigError: If the strategy has no such setting, or its value is no whole number or too small.
    """
    known = SETTINGS.get(name, {})
    for setting, value in settings.items():
        if setting not in known:
            which = f"it has {', '.join(known)}" if known else "it has none"
            raise LayerDropConfigError(f"strategy {name!r} has no setting {setting!r}: {which}.")
        if isinstance(value, bool) or not isinstance(value, int) or value < known[setting]:
            raise LayerDropConfigError(f"{setting} is {value!r}: give a whole number from {known[setting]}.")


def set_by_rule(name: str, model: PreTrainedModel, space: Space) -> Layers | None:
    """Return the one set that a strategy takes whatever is scored, if it has a ``rule``.

    Raises:
        LayerDropError: If the rule has no set for this model and depth.
    """
    rule = getattr(import_module(f"hf_layerdrop.search.strategies.{name}"), "rule", None)
    return None if rule is None else rule(model, space)


def load_strategy(name: str, settings: Mapping[str, Any]) -> Callable[[Problem], Proposal]:
    """Return a strategy with its settings, which are checked; see `check_settings`."""
    check_settings(name, settings)
    select: Callable[..., Proposal] = import_module(f"hf_layerdrop.search.strategies.{name}").select
    return partial(select, **settings)


def check_space(name: str, space: Space, max_sub_networks: int = MAX_SETS) -> None:
    """Refuse an exhaustive search that would take too long.

    Raises:
        LayerDropConfigError: If there are more sets than allowed; the message says how many, and offers beam.
    """
    if name == "exhaustive" and space.count() > max_sub_networks:
        raise LayerDropConfigError(
            f"An exhaustive search of this depth has {space.count():,} sub-networks, more than the "
            f"{max_sub_networks:,} of max_sub_networks: use strategy='beam', which scores a small part of them, or "
            "raise max_sub_networks."
        )
