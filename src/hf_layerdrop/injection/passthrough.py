"""What a dropped layer hands on in place of its output: its input, in the form that the layer returns.

Most layers return their hidden states alone. Older ones return a tuple, and what stands beside the hidden states is
known by reading the layer's own ``return``: an argument that it would have passed along is passed along, anything else
is None.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from hf_layerdrop.architectures.forward_source import returned_names

# On a module of a layer that other layers use too: `first_block_bias.py` sets it.
LENT = "_layerdrop_lent"


def handed_on(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str] = ()) -> Any:
    """Return what stands in for the output of a layer that is dropped.

    Args:
        layer: The layer.
        args: Its positional arguments.
        kwargs: Its other arguments.
        names: Which arguments it returns after the hidden states, if reading the layer cannot tell.
    """
    hidden_states = hidden_states_of_call(layer, args, kwargs)
    parts = names_handed_on(layer, names)
    if parts is None:
        return hidden_states
    given = inspect.signature(layer.forward).bind_partial(*args, **kwargs)
    given.apply_defaults()
    return (hidden_states, *(given.arguments.get(name) for name in parts))


def names_handed_on(layer: nn.Module, names: Sequence[str] = ()) -> tuple[str, ...] | None:
    """Return the names of what a layer returns after its hidden states, empty for no argument; None if those alone.

    If any ``names`` are given, they are known to be those.
    """
    return tuple(names) or returned_names(_plain_class(layer))


def own_weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights of a layer that are used by no other layer, so that none has a gradient when it is dropped."""
    for part in layer.modules():
        if LENT not in part.__dict__:
            yield from part.parameters(recurse=False)


def hidden_states_of_call(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a layer, by whatever name: what its residual stream carries."""
    return args[0] if args else kwargs[name_of_hidden_states(layer)]


def name_of_hidden_states(layer: nn.Module) -> str:
    """Return the name of the first argument of a layer."""
    return _first_parameter(_plain_class(layer))


def _plain_class(layer: nn.Module) -> type:
    """Return the class of a layer without what was put in front of it, which its cache entries would keep alive."""
    return next(cls for cls in type(layer).__mro__ if "forward" in cls.__dict__)


@cache
def _first_parameter(cls: type) -> str:
    return list(inspect.signature(cls.forward).parameters)[1]  # type: ignore[attr-defined]
