"""What is changed of a model, and how to set it back: after a block, or where a change does not come to its end.

It is noted before each change, so that an interrupt finds it noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

# A thing, its class, its attributes, and what those of them hold that are dicts: hooks, children, weights.
_Noted = tuple[Any, type, dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]


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
        """Note all attributes of an object, which is changed in place; of a module, those of all that it holds."""
        targets = _parts_of(target) if isinstance(target, nn.Module) else [target]
        self.note(partial(_restore, [_noted(part) for part in targets]))

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


@contextmanager
def all_or_nothing(*targets: Any) -> Iterator[Changes]:
    """Set objects back, and whatever else is noted, unless the block comes to its end; an interrupt may end it, too."""
    changes = Changes()
    for target in targets:
        changes.keep(target)
    try:
        yield changes
    except BaseException:
        changes.undo()
        raise


def _set_back(target: Any, before: Mapping[str, Any], absent: Sequence[str]) -> None:
    for name, value in before.items():
        setattr(target, name, value)
    for name in absent:
        if name in vars(target):
            delattr(target, name)


def _parts_of(model: nn.Module) -> list[Any]:
    """Return the modules of a model and their configs, with the parts of those; no weight is one of them."""
    parts: dict[int, Any] = {}
    waiting: list[Any] = list(model.modules())
    while waiting:
        part = waiting.pop()
        if id(part) not in parts:
            parts[id(part)] = part
            waiting += [
                value for value in vars(part).values() if isinstance(value, PreTrainedConfig | GenerationConfig)
            ]
    return list(parts.values())


def _noted(target: Any) -> _Noted:
    attributes = dict(vars(target))
    return (
        target,
        type(target),
        attributes,
        [(held, dict(held)) for held in attributes.values() if isinstance(held, dict)],
    )


def _restore(noted: Sequence[_Noted]) -> None:
    for target, kind, attributes, contents in noted:
        if type(target) is not kind:
            target.__class__ = kind
        present: dict[str, Any] = target.__dict__
        present.update(attributes)
        for name in present.keys() - attributes.keys():
            del present[name]
        for held, content in contents:
            held.clear()
            held.update(content)
