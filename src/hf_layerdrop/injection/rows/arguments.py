"""Cut the arguments of a layer to some rows of the batch: whatever has a row for each, wherever in the arguments.

Whether a tensor has rows, its shape alone does not tell: a batch may have as many rows as its rows have tokens. What
transformers' layers call by one of few names is known; anything else is tried once (see `trial.py`). A dimension of 1
stands for all rows and stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import nn

from hf_layerdrop.injection.rows.refusal import cannot

# Arguments whose first dimension is the batch, or 1: their names, and how many dimensions they then have.
_BATCHED = {
    "attention_mask": (2, 4),
    "encoder_attention_mask": (2, 4),
    "encoder_hidden_states": (3,),
    "position_ids": (2,),
    "position_embeddings": (3,),
    "position_bias": (4,),
    "encoder_decoder_position_bias": (4,),
}
# Arguments that are for all rows: of the tokens, whatever their number.
_SHARED = {"position_embeddings": (2,), "cache_position": (1,)}
_PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size)

# The dimension of a tensor that holds the rows, each once or as a block of several entries; None if none does.
Along = int | None
# An argument, or a part of it, and how many dimensions it has.
Key = tuple[str, int]
Change = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass
class Call:
    """What a layer is called with.

    Attributes:
        values: The arguments by name.
        positional: How many of them, the first, are given by position.
        states: The name of the hidden states.
        copied: The lists and dicts among the arguments that are copies, with their lengths.
    """

    values: dict[str, Any]
    positional: int
    states: str
    copied: list[tuple[Any, int]] = field(default_factory=list)

    @classmethod
    def of(cls, layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Give the arguments of a layer their names."""
        names = _parameters(type(layer))  # type: ignore[arg-type] # classes are hashable
        by_position = {(names[place] if place < len(names) else f"*{place}"): value for place, value in enumerate(args)}
        return cls({**by_position, **kwargs}, len(args), names[0])

    @property
    def args(self) -> tuple[Any, ...]:
        """What is given by position."""
        return tuple(self.values.values())[: self.positional]

    @property
    def kwargs(self) -> dict[str, Any]:
        """What is given by name."""
        return dict(list(self.values.items())[self.positional :])

    def changed(self, layer: nn.Module, change: Change) -> Call:
        """Return the call with each of its tensors changed; without the cache, which would be filled for some rows.

        Raises:
            UnsupportedModelError: If an argument is of a kind that may hold rows and cannot be looked into.
        """
        copied: list[tuple[Any, int]] = []

        def rebuilt(path: str, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return change(path, value)
            if value is None or isinstance(value, _PLAIN):
                return value
            if hasattr(value, "get_seq_length"):
                return None
            if is_dataclass(value) and not isinstance(value, type):
                parts = {part.name: getattr(value, part.name) for part in fields(value) if part.init}
                return replace(value, **{name: rebuilt(f"{path}.{name}", part) for name, part in parts.items()})
            if type(value) in (list, dict):
                made: Any = (
                    {name: rebuilt(f"{path}.{name}", part) for name, part in value.items()}
                    if isinstance(value, dict)
                    else [rebuilt(f"{path}.{place}", part) for place, part in enumerate(value)]
                )
                copied.append((made, len(made)))
                return made
            if isinstance(value, tuple):
                parts_of_tuple = [rebuilt(f"{path}.{place}", part) for place, part in enumerate(value)]
                return tuple(parts_of_tuple) if type(value) is tuple else type(value)(*parts_of_tuple)
            if callable(value):
                return value
            raise cannot(layer, f"its {path} is a {type(value).__name__}, which cannot be cut to rows")

        values = {name: rebuilt(name, value) for name, value in self.values.items()}
        return Call(values, self.positional, self.states, copied)


class Batched:
    """Which arguments of the layers of a stack have the rows of the batch."""

    def __init__(self) -> None:
        self._found: dict[Key, Along] = {}

    def unknown(self, call: Call, rows: int) -> dict[Key, torch.Tensor]:
        """Return those tensors of a call of which it is neither known by name nor by a trial whether they have rows."""
        unknown: dict[Key, torch.Tensor] = {}

        def note(path: str, tensor: torch.Tensor) -> torch.Tensor:
            key = (path, tensor.dim())
            if tensor.dim() and key not in self._found:
                if tensor.dim() in _SHARED.get(path.partition(".")[0], ()):
                    self._found[key] = None
                elif _has_rows_by_name(path, tensor, rows):
                    self._found[key] = 0
                elif tensor.shape[0] != 1 or (tensor.dim() > 1 and tensor.shape[1] == rows):
                    unknown[key] = tensor
            return tensor

        for path, value in call.values.items():
            if path != call.states:
                _look(path, value, note)
        return unknown

    def learn(self, found: Mapping[Key, Along]) -> None:
        """Take what a trial has found."""
        self._found |= found

    def cut(self, layer: nn.Module, call: Call, rows: int, kept: Callable[[torch.device], torch.Tensor]) -> Call:
        """Return a call for the rows that are kept alone.

        Raises:
            UnsupportedModelError: If an argument has other sizes than it had before.
        """

        def change(path: str, tensor: torch.Tensor) -> torch.Tensor:
            along = 0 if path == call.states else self._found.get((path, tensor.dim()))
            if not tensor.dim() or along is None or tensor.shape[along] == 1:
                return tensor
            if tensor.shape[along] % rows:
                raise cannot(layer, f"its {path} is of shape {tuple(tensor.shape)} beside {rows} rows")
            return of_rows(tensor, along, rows, kept(tensor.device))

        return call.changed(layer, change)


def of_rows(tensor: torch.Tensor, along: int, rows: int, kept: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor that are kept; each may be a block of entries, as those of all heads are."""
    if tensor.shape[along] == rows:
        return tensor.index_select(along, kept)
    return tensor.unflatten(along, (rows, -1)).index_select(along, kept).flatten(along, along + 1)


def _has_rows_by_name(path: str, tensor: torch.Tensor, rows: int) -> bool:
    name = path.partition(".")[0]
    if tensor.dim() not in _BATCHED.get(name, ()) or tensor.shape[0] not in (1, rows):
        return False
    # A square may be a mask of the tokens of a row, for all rows.
    return not ("mask" in name and tensor.dim() == 2 and tensor.shape[1] == rows)


def _look(path: str, value: Any, note: Change) -> None:
    """Show each tensor in a value to ``note``."""
    if isinstance(value, torch.Tensor):
        note(path, value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            _look(f"{path}.{name}", part, note)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            _look(f"{path}.{place}", part, note)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            _look(f"{path}.{part.name}", getattr(value, part.name), note)


@cache
def _parameters(cls: type) -> tuple[str, ...]:
    return tuple(inspect.signature(cls.forward).parameters)[1:]  # type: ignore[attr-defined]
