"""What a dropped layer hands on in place of its output: its input, in the form that the layer returns.

Most layers return their hidden states alone. Older ones return a tuple, and what stands beside the hidden states is
known by reading the layer's own ``return``: an argument that it would have passed along is passed along, anything else
is None.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

# On a module of a layer that other layers use too: `bias.py` sets it.
LENT = "_layerdrop_lent"

# How many entries of a tuple whose length changes with the arguments are made up.
_OPEN_END = 4


def handed_on(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str] = ()) -> Any:
    """Return what stands in for the output of a layer that is dropped.

    Args:
        layer: The layer.
        args: Its positional arguments.
        kwargs: Its other arguments.
        names: Which arguments it returns after the hidden states, if reading the layer cannot tell.
    """
    hidden_states = hidden_states_of_call(layer, args, kwargs)
    parts = tuple(names) or _returned_names(_plain_class(layer))
    if parts is None:
        return hidden_states
    given = inspect.signature(layer.forward).bind_partial(*args, **kwargs)
    given.apply_defaults()
    return (hidden_states, *(given.arguments.get(name) for name in parts))


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


@cache
def _returned_names(cls: type) -> tuple[str, ...] | None:
    """Return the names of what a layer returns after its hidden states, or None if it returns those alone."""
    function = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward)))).body[0]  # type: ignore[attr-defined]
    returns = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return) and node.value is not None]
    entries = _entries(returns[-1], function) if returns else None
    return None if entries is None else tuple(entries[1:])


def _entries(value: ast.expr, function: ast.AST) -> list[str] | None:
    """Return the names in a tuple expression, empty where an entry is no name; None if it is not a tuple."""
    if isinstance(value, ast.Tuple):
        return [part.id if isinstance(part, ast.Name) else "" for part in value.elts]
    if isinstance(value, ast.BinOp) and isinstance(value.left, ast.Tuple):
        return [*(_entries(value.left, function) or []), *[""] * _OPEN_END]
    if isinstance(value, ast.Name):
        return _entries_of_variable(value.id, function)
    return None


def _entries_of_variable(name: str, function: ast.AST) -> list[str] | None:
    """Return the entries of the tuple that a variable holds, open-ended if some are added on a condition."""
    for node in _own_nodes(function):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            entries = None if isinstance(node.value, ast.Name) else _entries(node.value, function)
            if entries is not None:
                return [*entries, *[""] * _OPEN_END]
    return None


def _own_nodes(function: ast.AST) -> list[ast.AST]:
    """Return the nodes of a function in the order of its lines, without those of functions inside it."""
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            nodes += [child, *_own_nodes(child)]
    return nodes
