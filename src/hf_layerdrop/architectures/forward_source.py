"""Read the source of a module's ``forward``: which parts it calls, in which order, and how much it returns.

A module lists its parts in the order in which they were made, which is not the order in which they are used, and says
nowhere what it returns. Its source does.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

# How many entries of a tuple whose length changes with the arguments are made up.
_OPEN_END = 4


def called_parts(kind: type, parts: Collection[str]) -> list[str]:
    """Return the names among ``parts`` that the ``forward`` of a class uses, in the order of evaluation.

    A name that is used in two places is there twice. What a method of the class uses stands where it is called.

    Raises:
        OSError: If the source is not to be had.
    """
    return list(_used(kind, "forward", parts, ()))


@cache
def returned_values(kind: Any) -> frozenset[int | None]:
    """Return how many values the ``forward`` of a class returns, by its return statements; None where they do not say.

    Raises:
        OSError: If the source is not to be had.
    """
    function = _function(kind, "forward")
    nodes = list(_own_nodes(function))
    tuples = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and any(isinstance(part, ast.Tuple) for part in ast.walk(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return frozenset(_values(node.value, tuples) for node in nodes if isinstance(node, ast.Return))


def names_in_forward(kind: type, names: Collection[str]) -> list[str]:
    """Return which of these attributes, of whatever, the ``forward`` of a class reads; none if it has no source."""
    try:
        read = {node.attr for node in ast.walk(_function(kind, "forward")) if isinstance(node, ast.Attribute)}
    except (OSError, TypeError):
        return []
    return [name for name in names if name in read]


@cache
def returned_names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of what the ``forward`` of a layer returns after its hidden states, None if those alone.

    An entry that is no name is empty.

    Raises:
        OSError: If the source is not to be had.
    """
    function = _function(kind, "forward")
    returns = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return) and node.value is not None]
    entries = _entries(returns[-1], function) if returns else None
    return None if entries is None else tuple(entries[1:])


def takes_and_uses(kind: type, argument: str) -> bool:
    """Tell whether the ``forward`` of a class has an argument of this name, and does something with it.

    Raises:
        OSError: If the source is not to be had.
    """
    function = _function(kind, "forward")
    if argument not in [given.arg for given in function.args.args]:
        return False
    return any(isinstance(node, ast.Name) and node.id == argument for node in ast.walk(function))


@cache
def _function(kind: type, name: str) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(kind, name))))
    function = ast.parse(source).body[0]
    if not isinstance(function, ast.FunctionDef):
        raise OSError(f"{kind.__name__}.{name} is not written as a function.")
    return function


def _used(kind: type, method: str, parts: Collection[str], callers: tuple[str, ...]) -> Iterator[str]:
    for node in _in_order(_function(kind, method)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"):
            continue
        if node.attr in parts:
            yield node.attr
        elif _is_own_method(kind, node.attr) and node.attr not in (*callers, method):
            yield from _used(kind, node.attr, parts, (*callers, method))


def _is_own_method(kind: type, name: str) -> bool:
    """Tell whether a class has a method of this name that it has not from torch."""
    method = inspect.getattr_static(kind, name, None)
    return inspect.isfunction(method) and method.__module__.partition(".")[0] != "torch"


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node after all that is evaluated before it: a call after its arguments."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        children = [*node.args, *(keyword.value for keyword in node.keywords), node.func]
    for child in children:
        yield from _in_order(child)
    yield node


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of functions inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield from _own_nodes(child)


def _values(value: ast.expr | None, tuples: Collection[str]) -> int | None:
    if isinstance(value, ast.Tuple):
        return len(value.elts)
    return None if isinstance(value, ast.Name) and value.id in tuples else 1


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
