"""Let a model be one thing at a time: threads change it in turns, and nothing changes it for good inside of a block.

A block, such as that of `sub_network`, sets back at its end what it changed at its beginning. What was changed for good
in between would be set back in part, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from hf_layerdrop.errors import LayerDropStateError

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
# What keeps the blocks of each model open, the innermost last, changed by the thread whose turn it is. Models without
# one are not there.
_blocks: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()


@contextmanager
def turn_of_thread(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread cuts this model, and keep the others waiting until the block ends.

    Forwards of other threads do not wait. To run several depths at once, give each a `shared_sub_network`.
    """
    with _locks.setdefault(model, RLock()):
        yield


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
    with ExitStack() as turns:
        for model in models:
            turns.enter_context(turn_of_thread(model))
            for other in _in_blocks(model):
                with turn_of_thread(other):
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
