"""Let threads cut one model in turns: a cut in place changes the model for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making = Lock()


@contextmanager
def turn_of_thread(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread cuts this model, and keep the others waiting until the block ends.

    Forwards of other threads do not wait. To run several depths at once, give each a `shared_sub_network`.
    """
    with _making:
        lock = _locks.setdefault(model, RLock())
    with lock:
        yield
