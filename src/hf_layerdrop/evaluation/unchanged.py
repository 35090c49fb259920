"""Proof that tensors are what they were, by what torch counts: each write in place raises a tensor's version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hf_layerdrop import compat

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)


class Held:
    """A nesting of tensors, as it is at this moment.

    Attributes:
        value: The very tensors.
        is_intact: Whether nobody has written into one of them since; never where torch keeps no count.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self._versions = [(tensor, version_of(tensor)) for tensor in tensors_of(value)]

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield them."""
        return (tensor for tensor, _ in self._versions)

    @property
    def is_intact(self) -> bool:
        """Compare the counts."""
        return all(version is not None and version_of(tensor) == version for tensor, version in self._versions)


class Doubts:
    """Whether tensors on a device that were taken for equal are not: seen on the device, and read once for all."""

    def __init__(self) -> None:
        self._unequal: dict[torch.device, torch.Tensor] = {}

    def note(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Look at two tensors of one shape, without waiting."""
        unequal = one.ne(other).any()
        self._unequal[one.device] = self._unequal[one.device] | unequal if one.device in self._unequal else unequal

    def were_right(self) -> bool:
        """Tell whether any two were unequal, and begin anew; this waits."""
        found, self._unequal = self._unequal, {}
        return any(map(bool, found.values()))


class Comparison:
    """Compare what layers are given in one forward with what they were given in another; each pair of tensors once.

    Tensors on a device are taken for equal if they are alike, so that nothing waits; ``doubts`` knows better later.
    """

    def __init__(self, doubts: Doubts) -> None:
        self._doubts = doubts
        self._equal: dict[tuple[int, int | None, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._known: dict[tuple[int, int | None], torch.Tensor] = {}

    def snapshot(self, value: Any) -> Any:
        """Return a value in containers of its own; of tensors that were found equal, those that are held already."""
        if torch.is_tensor(value):
            return self._known.get((id(value), version_of(value)), value)
        if isinstance(value, Mapping):
            return {name: self.snapshot(part) for name, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.snapshot(part) for part in value)
        return value if isinstance(value, _PLAIN) or callable(value) else _Unknown()

    def same(self, new: Any, old: Any) -> bool:
        """Tell whether two values are equal beyond doubt: tensors to the bit, objects that nobody can look into never.

        ``old`` has to be intact.
        """
        if new is old:
            return True
        if torch.is_tensor(new):
            return torch.is_tensor(old) and self._same_tensors(new, old)
        if isinstance(new, Mapping):
            return (
                isinstance(old, Mapping)
                and list(new) == list(old)
                and all(self.same(new[name], old[name]) for name in new)
            )
        if isinstance(new, list | tuple):
            return type(new) is type(old) and len(new) == len(old) and all(map(self.same, new, old))
        return type(new) is type(old) and (isinstance(new, _PLAIN) or callable(new)) and bool(new == old)

    def _same_tensors(self, new: torch.Tensor, old: torch.Tensor) -> bool:
        key = (id(new), version_of(new), id(old))
        if key in self._equal:
            return True
        alike = (new.shape, new.dtype, new.device, new.stride()) == (old.shape, old.dtype, old.device, old.stride())
        if not alike or (new.device.type == "cpu" and not torch.equal(new, old)):
            return False
        if new.device.type != "cpu":
            self._doubts.note(new, old)
        self._equal[key] = new, old  # both are held, so that no other tensor gets their ids
        self._known[id(new), version_of(new)] = old
        return True


class _Unknown:
    """Stands for an object that can change without a trace."""


def version_of(tensor: torch.Tensor) -> int | None:
    """Return torch's count of writes into a tensor; None where it keeps none, as in inference mode."""
    return None if tensor.is_inference() else getattr(tensor, compat.TENSOR_VERSION.name)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nesting."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(part)
