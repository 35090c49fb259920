"""Budgets on the command line, checked against what a checkpoint holds before anything is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_layerdrop.errors import LayerDropConfigError

if TYPE_CHECKING:
    from hf_layerdrop.checkpoints.stored_model import StoredModel

_COUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kKmMbBgG]?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def read_count(text: str | None) -> int | None:
    """Read a number of parameters: ``60M``, ``1.5B`` or ``60000000``.

    Raises:
        LayerDropConfigError: If it is none.
    """
    if text is None:
        return None
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise LayerDropConfigError(f"--max-parameters is {text!r}: give a number, such as 60M, 1.5B or 60000000.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def check_budgets(depth: str | None, budgets: Mapping[str, float | None], model: StoredModel) -> None:
    """Refuse what no sub-network of a checkpoint can meet.

    Raises:
        LayerDropConfigError: If there is neither depth nor budget, or both, or a budget below the cheapest possible.
    """
    given = {name: value for name, value in budgets.items() if value is not None}
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in budgets)
    if bool(given) == (depth is not None):
        both = ", not both" if given else ", such as --depth 6"
        raise LayerDropConfigError(f"Give either --depth, or a budget ({flags}){both}.")
    parameters = model.parameters - sum(sum(stack.parameters) - min(stack.parameters) for stack in model.stacks)
    nbytes = model.nbytes - sum(sum(stack.nbytes) - min(stack.nbytes) for stack in model.stacks)
    cheapest = {"max_parameters": (parameters, "{:,} parameters"), "max_size_mb": (nbytes / 1e6, "{:.4g} MB")}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if not value > 0:
            raise LayerDropConfigError(f"{flag} is {value:g}: give a number above 0.")
        least, text = cheapest.get(name, (0, ""))
        if value < least:
            named = ", ".join(f"1 of {stack.depth} {stack.name} layers" for stack in model.stacks)
            raise LayerDropConfigError(
                f"{flag} is {value:,}, but the cheapest possible ({named}) has {text.format(least)}: raise the budget."
            )
