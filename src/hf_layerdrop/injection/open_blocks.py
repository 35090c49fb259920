"""Let a model be one thing at a time: threads change it in turns, and nothing changes it for good inside of a block.

A block, such as that of `sub_network`, sets back at its end what it changed at its beginning. What was changed for good
in between would be set back in part, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Condition, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError


@dataclass(frozen=True, eq=False)
class _Turn:
    """What a thread may change: models, and with them all others that hold one of their lists of layers."""

    thread: int
    lists: frozenset[nn.Module]


_changed = Condition()  # by which threads wait for their turn, and change what follows
_taken: list[_Turn] = []
_waiting: dict[int, _Turn] = {}  # by thread
# What keeps the blocks of each model open, the innermost last, changed by the thread whose turn it is. Models without
# one are not there.
_blocks: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()


@contextmanager
def turn_of_thread(*models: nn.Module) -> Iterator[None]:
    """Wait until no other thread cuts these models, their parts or what they stand in; keep others waiting meanwhile.

    Forwards of other threads do not wait. To run several depths at once, give each a `shared_sub_network`.

    Raises:
        LayerDropStateError: If the threads that cut them wait for this one.
    """
    own = [turn.lists for turn in [*_taken] if turn.thread == get_ident() and turn.lists.issuperset(models)]
    turn = _Turn(get_ident(), own[0] if own else _lists_of(models))
    try:
        try:
            _take(turn, models[0])
            yield
        finally:
            _give_back(turn)
    finally:
        try:
            _give_back(turn)  # what an interrupt of that has left
        finally:
            _let_go()


def _lists_of(models: Sequence[nn.Module]) -> frozenset[nn.Module]:
    """Return models and the lists of modules inside of them, which another thread may be changing."""
    seen, waiting = set(models), [*models]
    while waiting:
        children = [*getattr(waiting.pop(), compat.CHILDREN.name).values()]  # read at once
        new = [child for child in children if child is not None and child not in seen]
        seen.update(new)
        waiting += new
    return frozenset(models) | {part for part in seen if isinstance(part, nn.ModuleList)}


def _take(turn: _Turn, model: nn.Module) -> None:
    with _changed:
        while others := _before(turn):
            if _wait_for(turn.thread, others):
                raise LayerDropStateError(
                    f"This thread waits for another that cuts this {type(model).__name__} or a part of it, and that "
                    "one waits for this; let threads open their blocks in one order, the whole before its parts."
                )
            _waiting[turn.thread] = turn
            _changed.wait()
        _taken.append(turn)
        _waiting.pop(turn.thread, None)


def _give_back(turn: _Turn) -> None:
    with _changed:
        if turn in _taken:
            _taken.remove(turn)
        if _waiting.get(turn.thread) is turn:
            del _waiting[turn.thread]
        _changed.notify_all()


def _let_go() -> None:
    """Release what an interrupt between the end of a ``with`` and its release has left: others would wait for ever."""
    with suppress(RuntimeError):  # it is not held, as nearly always
        while True:
            _changed.release()


def _before(turn: _Turn) -> list[_Turn]:
    """Return the turns of other threads that have to end before this one can begin."""
    return [other for other in _taken if other.thread != turn.thread and not other.lists.isdisjoint(turn.lists)]


def _wait_for(thread: int, turns: Sequence[_Turn]) -> bool:
    """Tell whether one of some turns cannot end before a thread goes on."""
    asked, left = set(), {turn.thread for turn in turns}
    while left:
        asked.add(other := left.pop())
        if other in _waiting:
            left |= {turn.thread for turn in _before(_waiting[other])} - asked
    return thread in asked


def open_block(model: nn.Module, changes: Any) -> None:
    """Note that a block of a model is open until `close_block` is told the same ``changes``."""
    _blocks[model] = (*opened_blocks(model), changes)


def opened_blocks(model: nn.Module) -> tuple[Any, ...]:
    """Return what keeps the blocks of a model open, the innermost last."""
    return _blocks.get(model, ())


def close_block(model: nn.Module, changes: Any) -> None:
    """Undo `open_block`; it may be called again, and where the block was never opened."""
    if left := tuple(other for other in opened_blocks(model) if other is not changes):
        _blocks[model] = left
    else:
        _blocks.pop(model, None)


def is_in_block(module: nn.Module) -> bool:
    """Tell whether a block is open of a module, of a part of it, or of what it is a part of."""
    return bool(_in_blocks(module))


@contextmanager
def for_good(name: str, *models: nn.Module) -> Iterator[None]:
    """Change models for good inside the ``with`` block, when other threads have closed their blocks of them.

    Raises:
        LayerDropStateError: If this thread has opened one; the message says that the function ``name`` has to wait.
    """
    with turn_of_thread(*models):
        for model in models:
            for other in _in_blocks(model):
                refuse_within_block(name, other)
        yield


def refuse_within_block(name: str, model: nn.Module) -> None:
    """Refuse to call a function inside of an open block of a model.

    Raises:
        LayerDropStateError: If one is open.
    """
    if opened_blocks(model):
        raise LayerDropStateError(
            f"{name} was called while this {type(model).__name__} is a sub-network for the length of a with block, "
            "whose end would undo a part of it; call it after the block."
        )


def _in_blocks(module: nn.Module) -> list[nn.Module]:
    opened = [model for reference in _blocks.keyrefs() if (model := reference()) is not None]
    inside = set(module.modules()) if opened else set()
    return [model for model in opened if model in inside or any(module is part for part in model.modules())]
