"""Budgets on the command line, checked against the headers of a checkpoint before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hf_layerdrop.checkpoints.header_stacks import StackHeader
from hf_layerdrop.checkpoints.headers import CheckpointHeaders
from hf_layerdrop.errors import LayerDropConfigError

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


def check_budgets(depth: str | None, budgets: Mapping[str, float | None], headers: CheckpointHeaders) -> None:
    """Refuse what no sub-network of a checkpoint can meet.

    Raises:
        LayerDropConfigError: If there is neither depth nor budget, or both, or a budget below the cheapest possible.
    """
    given = {name: value for name, value in budgets.items() if value is not None}
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in budgets)
    if bool(given) == (depth is not None):
        both = ", not both" if given else ", such as --depth 6"
        raise LayerDropConfigError(f"Give either --depth, or a budget ({flags}){both}.")
    stacks = headers.stacks()
    cheapest = {
        "max_parameters": (_parameters_of_one_layer_each(headers, stacks), "{:,} parameters"),
        "max_size_mb": (_size_of_one_layer_each(headers, stacks), "{:.4g} MB"),
    }
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if not value > 0:
            raise LayerDropConfigError(f"{flag} is {value:g}: give a number above 0.")
        least, text = cheapest.get(name, (0, ""))
        if value < least:
            named = ", ".join(f"1 of {stack.depth} {stack.name} layers" for stack in stacks)
            raise LayerDropConfigError(
                f"{flag} is {value:,}, but the cheapest possible ({named}) has {text.format(least)}: raise the budget."
            )


def _parameters_of_one_layer_each(headers: CheckpointHeaders, stacks: list[StackHeader]) -> float:
    return headers.parameters - sum(sum(stack.parameters) - min(stack.parameters) for stack in stacks)


def _size_of_one_layer_each(headers: CheckpointHeaders, stacks: list[StackHeader]) -> float:
    size = sum(tensor.nbytes for tensor in headers.tensors.values())
    for stack in stacks:
        layers = [0] * stack.depth
        for name, tensor in headers.tensors.items():
            index = name.removeprefix(f"{stack.path}.").partition(".")[0]
            if name.startswith(f"{stack.path}.") and index.isdecimal():
                layers[int(index)] += tensor.nbytes
        size -= sum(layers) - min(layers)
    return size / 1e6
