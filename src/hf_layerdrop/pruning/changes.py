"""What is changed of a model for a while, and how to set it back.

It is noted before each change, so that an interrupt finds it noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


class Changes:
    """Changes of attributes that can be undone together, last first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def note(self, restore: Callable[[], Any]) -> None:
        """Note what sets back the change that follows; it may be called twice, and before the change was made."""
        self._undo.append(restore)

    def assign(self, target: Any, values: Mapping[str, Any]) -> None:
        """Set attributes of an object."""
        absent = [name for name in values if not hasattr(target, name)]
        before = {name: getattr(target, name) for name in values if name not in absent}
        self.note(partial(_set_back, target, before, absent))
        for name, value in values.items():
            setattr(target, name, value)

    def keep(self, target: Any) -> None:
        """Note all attributes of an object, which is changed in place."""
        self.note(partial(_restore, target, dict(vars(target))))

    def undo(self) -> None:
        """Set everything back, whatever is raised meanwhile, and raise that at the end."""
        raised: BaseException | None = None
        while self._undo:
            try:
                self._undo[-1]()
                self._undo.pop()
            except KeyboardInterrupt as error:  # noqa: PERF203 - what was interrupted is done again
                raised = error
            except Exception as error:
                raised = raised or error
                self._undo.pop()
        if raised is not None:
            raise raised


def _set_back(target: Any, before: Mapping[str, Any], absent: Sequence[str]) -> None:
    for name, value in before.items():
        setattr(target, name, value)
    for name in absent:
        if name in vars(target):
            delattr(target, name)


def _restore(target: Any, attributes: Mapping[str, Any]) -> None:
    vars(target).update(attributes)
    for name in vars(target).keys() - attributes.keys():
        delattr(target, name)
