"""One value of a LayerDropConfig at a time: what is allowed, and the one type that it is converted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from typing import Any, TypeAlias

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.frozen_dict import FrozenDict
from hf_layerdrop.samplers.schedules import read_schedule

Rate: TypeAlias = float | tuple[float, ...]

SAMPLERS = ("bernoulli", "depth", "learned")
STRUCTURES = ("layer", "attention", "ffn", "head")
EXECUTIONS = ("skip", "mask")
GRANULARITIES = ("batch", "row")
SCALES = ("none", "kept")

# What people call the structures, so that an error can name the one that was meant.
_OTHER_NAMES = {name: name for name in STRUCTURES} | {
    "block": "layer",
    "self-attention": "attention",
    "attn": "attention",
    "feed-forward": "ffn",
    "mlp": "ffn",
    "attention head": "head",
}


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of those allowed."""
    if value not in allowed:
        raise LayerDropConfigError(f"{name} is {value!r}; it must be {' or '.join(map(repr, allowed))}.")


def check_schedule(schedule: Any) -> None:
    """Refuse what names no schedule of `schedules.SCHEDULES`."""
    if schedule is not None and not isinstance(schedule, str):
        raise LayerDropConfigError(
            f"schedule is {schedule!r}; a config names one, such as 'falling'. Give a function to "
            "LayerDropScheduleCallback."
        )
    if schedule is not None:
        read_schedule(schedule)


def as_structure(value: Any) -> str | tuple[str, ...]:
    """Return one structure by its name alone, several as a tuple in the order of `STRUCTURES`."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or len(set(map(str, names))) < len(names):
        raise LayerDropConfigError(
            f"structure is {value!r}; give one of {', '.join(STRUCTURES)}, or several, each once: ('head', 'layer')."
        )
    for name in names:
        if name not in STRUCTURES:
            near = get_close_matches(str(name).lower(), _OTHER_NAMES, n=1, cutoff=0.5)
            hint = f"; did you mean {_OTHER_NAMES[near[0]]!r}?" if near else "."
            raise LayerDropConfigError(
                f"structure names {name!r}; it must be {' or '.join(map(repr, STRUCTURES))}, or several of them{hint}"
            )
    ordered = tuple(name for name in STRUCTURES if name in names)
    return ordered[0] if len(ordered) == 1 else ordered


def as_rate(value: Any, stack: str | None = None) -> Rate:
    """Return a rate as plain numbers: one, or one a layer.

    Raises:
        LayerDropConfigError: If it is neither, or out of range.
    """
    where = f"rate of the {stack}" if stack else "rate"
    value = as_python(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value:
            raise LayerDropConfigError(f"{where} is empty; give one number, or one a layer.")
        return tuple(_number(entry, where) for entry in value)
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    value = as_python(value)
    try:
        number = float(value) if not isinstance(value, bool | str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise LayerDropConfigError(f"{where} is {value!r}; it must be a number from 0 (never skip) to 1 (always skip).")
    return number


def as_never_drop(value: Any) -> Any:
    """Return layer indices as a tuple, or a frozen dict of them by stack."""
    if isinstance(value, Mapping):
        return FrozenDict({stack_name(stack): _indices(indices) for stack, indices in value.items()})
    return _indices(value)


def _indices(value: Any) -> tuple[int, ...]:
    value = as_python(value)
    entries = [value] if isinstance(value, int) else value
    if not isinstance(entries, Sequence | AbstractSet) or isinstance(entries, str | bytes):
        raise LayerDropConfigError(
            f"never_drop is {value!r}; give layer indices such as (0, -1), or a dict of them by stack."
        )
    indices = [as_python(entry) for entry in entries]
    for entry in indices:
        if isinstance(entry, bool) or not isinstance(entry, int):
            raise LayerDropConfigError(f"never_drop holds {entry!r}; layer indices are whole numbers such as 0 or -1.")
    return tuple(sorted(indices) if isinstance(entries, AbstractSet) else indices)


def stack_name(stack: Any) -> str:
    """Return the key of a dict by stack, which must be a name."""
    if not isinstance(stack, str):
        raise LayerDropConfigError(f"rate by stack needs stack names as keys, not {stack!r}; e.g. {{'encoder': 0.2}}.")
    return stack


def as_python(value: Any) -> Any:
    """Turn an array or a number of numpy, torch or the like into Python's own; leave everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
