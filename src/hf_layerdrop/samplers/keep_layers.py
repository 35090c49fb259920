"""The keep_layers grammar: whatever a caller may write becomes one sorted tuple of layer indices a stack.

The same parser serves Python and the command line:

- ``6``, ``"6"``: a depth, its layers spread evenly (the paper's Fig. 5: the first and last layers matter most);
- ``[0, 2, 4]``, ``"0,2,4"``, ``"6,"``: indices in any order, negative ones counted from the end;
- ``slice(None, None, 2)``, ``"::2"``, ``"3:9"``: slices, as Python reads them, but never reversed;
- ``"every_other"``, ``"every_other:p"``, ``"nested:6"``, ``"first:6"``, ``"last:6"``, ``"all"``: strategies by name;
- ``{"encoder": 6, "decoder": "::2"}``, ``"encoder=6;decoder=::2"``: by stack, where stacks not named stay whole;
  without names, a depth or a rule goes to both stacks of an encoder-decoder, and only ``all`` to those of others;
- ``"best:6"``, ``"fastest:0.99"``: the recommended sets of the checkpoint decide (`measured_sets`);
- ``"selection.json"``: a selection file, ``{"keep_layers": {"encoder": [0, 2]}}``; in Python also the record itself.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, TypeAlias, TypeGuard

from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.measured_sets import asks_for_fastest, asks_for_measured, measured_set
from hf_layerdrop.samplers.nested import nested_set

if TYPE_CHECKING:
    from hf_layerdrop.checkpoints.recommended_file import Recommended


class KeepsLayers(Protocol):
    """A record that says which layers it keeps, such as the `Selection` of `search_layers`."""

    @property
    def keep_layers(self) -> Mapping[str, Sequence[SupportsIndex]]:
        """The indices by stack."""


class Array(Protocol):
    """Indices in an array of numpy, torch or the like."""

    @property
    def ndim(self) -> int:
        """How many dimensions it has: one."""

    def tolist(self) -> object:
        """The indices as Python's own."""


# Not as Collection[SupportsIndex]: a type checker would try it on a dict of two kinds of values, and find it wrong.
Indices: TypeAlias = Sequence[SupportsIndex] | AbstractSet[SupportsIndex] | Array
KeepLayersOfStack: TypeAlias = SupportsIndex | str | slice | Indices | None
KeepLayers: TypeAlias = KeepLayersOfStack | Mapping[str, KeepLayersOfStack] | os.PathLike[str] | KeepsLayers
"""Every form that is listed above."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_SLICE = re.compile(r"([+-]?[0-9]{1,18})?:([+-]?[0-9]{1,18})?(?::([+-]?[0-9]{1,18})?)?")
_LONGEST_TEXT = 10_000  # characters: a thousand layers by number
_SAME_IF_ALONE = {"encoder", "layers"}
_FORMS = (
    "a depth (6), indices (0,2,4), a slice (::2), all, every_other, every_other:p, nested:n, first:n, last:n, or of "
    "the sets that were measured best:n or fastest:share"
)


def parse_keep_layers(
    spec: KeepLayers, depths: Mapping[str, int], *, recommended: Recommended | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the sorted indices of the layers to keep, for every stack in ``depths``.

    Args:
        spec: Any form of the grammar (see the module); None keeps everything.
        depths: Number of layers of each stack of the model or checkpoint that is about to be cut.
        recommended: For ``best:n`` and ``fastest:share``, which alone read it: the recommended sets, or the checkpoint
            that has them beside it.

    Raises:
        CheckpointError: The recommended sets cannot be read.
        KeepLayersError: The specification cannot be read, or does not fit these stacks.
    """
    by_stack = _named_stacks(resolve(spec, depths, recommended), depths)
    return {stack: _parse_stack(by_stack.get(stack), stack, depth) for stack, depth in depths.items()}


def resolve(spec: KeepLayers, depths: Mapping[str, int], recommended: Recommended | None) -> KeepLayers:
    """Return the measured set that ``best:n`` or ``fastest:share`` means, as a record; all else as it is.

    Raises:
        CheckpointError: The recommended sets cannot be read.
        KeepLayersError: There are none, or none that fits.
    """
    return measured_set(_named_stacks(spec, depths), depths, recommended) if asks_for_measured(spec) else spec


def _named_stacks(spec: KeepLayers, depths: Mapping[str, int]) -> Mapping[str, Any]:
    by_stack = _by_its_only_name(_split_by_stack(spec, depths), depths)
    unknown = [stack for stack in by_stack if stack not in depths]
    if unknown:
        raise KeepLayersError(
            f"keep_layers names the stack {_shown(unknown[0])}, but this model has {_listed(depths)}: use these names."
        )
    return by_stack


def _by_its_only_name(by_stack: Mapping[Any, Any], depths: Mapping[str, int]) -> Mapping[Any, Any]:
    """Let the only stack of a model be named as its weight files name it, which may keep an older layout."""
    names = [*by_stack, *depths]
    if len(names) == 2 and set(names) == _SAME_IF_ALONE:
        return {names[1]: by_stack[names[0]]}
    return by_stack


def choice_behind(spec: KeepLayers) -> dict[str, Any]:
    """Return how the layers were chosen, for the provenance: strategy, metric and score, as far as ``spec`` says so.

    A record of `search_layers` and its selection file say all three, the name of a rule is the strategy, and a depth is
    the evenly spread set. Indices and slices say nothing, nor does a dict by stack with different rules.

    Raises:
        KeepLayersError: If ``spec`` is a selection file that cannot be read.
    """
    record = _selection_file(spec) if _names_a_file(spec) else getattr(spec, "__dict__", {})
    if record:
        return {entry: value for entry in _KINDS if (value := _said_of_choice(entry, record.get(entry))) is not None}
    if isinstance(spec, str) and "=" in spec:
        spec = _split_text(spec)
    rules = {_rule(value) for value in (spec.values() if isinstance(spec, Mapping) else [spec])}
    return {"strategy": rules.pop()} if len(rules) == 1 and rules != {None} else {}


# What a record says of a choice, which is written into checkpoints.
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "strategy": lambda value: isinstance(value, str),
    "metric": lambda value: isinstance(value, str),
    "score": lambda value: isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value),
}


def _said_of_choice(entry: str, value: Any) -> Any:
    if value is not None and not _KINDS[entry](value):
        wanted = "a finite number" if entry == "score" else "a name"
        raise KeepLayersError(
            f"The selection says {entry} = {_shown(value)}, which is not {wanted}: correct or delete this entry, or "
            "give its layers as keep_layers."
        )
    return value


def _rule(spec: KeepLayers) -> str | None:
    if _as_integer(spec) is not None or (isinstance(spec, str) and _INTEGER.fullmatch(spec.strip())):
        return "spread"
    name = spec.partition(":")[0].strip() if isinstance(spec, str) else None
    return name if name in _STRATEGIES else None


def evenly_spread(depth: int, of: int, *, alone: int = -1) -> tuple[int, ...]:
    """Spread ``depth`` layers evenly over ``of``, the first and the last included.

    A depth of 1 keeps the layer ``alone``, by default the last, which was measured to be the best (docs/rates.md).
    """
    if depth == 1:
        return (alone % of,)
    return tuple(i * (of - 1) // (depth - 1) for i in range(depth))


def format_keep_layers(kept: Mapping[str, Collection[int]]) -> str:
    """Write what `parse_keep_layers` returned as a line that it reads back: ``0,2,5`` or ``encoder=0,2;decoder=1,``."""
    if len(kept) == 1:
        return _format_indices(*kept.values())
    return ";".join(f"{stack}={_format_indices(indices)}" for stack, indices in kept.items())


def _format_indices(indices: Collection[int]) -> str:
    text = ",".join(str(index) for index in sorted(indices))
    return text if len(indices) > 1 else f"{text},"  # "6" alone would be a depth


def _split_by_stack(spec: KeepLayers, depths: Mapping[str, int]) -> Mapping[Any, KeepLayers]:
    """Turn any specification into one by stack; a bare one belongs to the only stack there is."""
    if isinstance(spec, str) and len(spec) > _LONGEST_TEXT:
        raise KeepLayersError(
            f"keep_layers is {_shown(spec[:_LONGEST_TEXT])}, of {len(spec):,} characters: give at most "
            f"{_LONGEST_TEXT:,}, or a selection file."
        )
    spec = _read_selection(spec) if _names_a_file(spec) else getattr(spec, "keep_layers", spec)
    if isinstance(spec, str) and "=" in spec:
        spec = _split_text(spec)
    if isinstance(spec, Mapping):
        if not spec:
            raise KeepLayersError(
                f"keep_layers is an empty dict, but this model has {_listed(depths)}: name at least one."
            )
        return spec
    if spec is None or (isinstance(spec, str) and spec.strip() == "all"):
        return dict.fromkeys(depths)
    if asks_for_fastest(spec):  # of the whole model
        return dict.fromkeys(depths, spec)
    if not _is_for_each_stack(spec, depths):
        example = ";".join(f"{stack}={max(1, depth // 2)}" for stack, depth in depths.items())
        raise KeepLayersError(
            f"keep_layers is {_shown(spec)}, but this model has {_listed(depths)}: say which, for example {example!r}."
        )
    return dict.fromkeys(depths, spec)


def is_encoder_decoder(depths: Iterable[str]) -> bool:
    """Tell whether the stacks are an encoder and its decoder, which one depth or rule can mean at once."""
    return set(depths) == {"encoder", "decoder"}


def _is_for_each_stack(spec: KeepLayers, depths: Mapping[str, int]) -> bool:
    """Tell whether what names no stack means each: there is one alone, or a depth or rule meets an encoder-decoder."""
    return len(depths) == 1 or (is_encoder_decoder(depths) and not _is_indices(spec))


def _is_indices(spec: KeepLayers) -> bool:
    """Tell whether these are numbers of layers, of which each stack has its own; what is neither is told by parsing."""
    if isinstance(spec, str):
        text = spec.strip()
        return not _INTEGER.fullmatch(text) and (_indices_in(text) is not None or bool(_SLICE.fullmatch(text)))
    return _as_integer(spec) is None


def _split_text(text: str) -> dict[str, str]:
    by_stack: dict[str, str] = {}
    for part in text.split(";"):
        stack, equals, value = (piece.strip() for piece in part.partition("="))
        if not (stack and equals and value):
            raise KeepLayersError(
                f"keep_layers has the part {_shown(part)}, which is not stack=layers: write 'encoder=6;decoder=::2'."
            )
        if stack in by_stack:
            raise KeepLayersError(f"keep_layers names the stack {_shown(stack)} twice: name each stack once.")
        by_stack[stack] = value
    return by_stack


def _names_a_file(spec: KeepLayers) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(spec, os.PathLike) or (isinstance(spec, str) and spec.strip().lower().endswith(".json"))


def _read_selection(path: str | os.PathLike[str]) -> KeepLayers:
    """Return the ``keep_layers`` of a selection file: a dict by stack, or a list for a model with one stack."""
    kept = _selection_file(path).get("keep_layers")
    if not isinstance(kept, dict | list):
        raise KeepLayersError(
            f'The selection file {_shown(os.fspath(path), 200)} has no "keep_layers" by stack: give a file that holds '
            '{"keep_layers": {"encoder": [0, 2]}}.'
        )
    return kept


def _selection_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    name = os.fspath(path)
    try:
        selection = read_json(name.strip() if isinstance(name, str) else name)
    except Unreadable as error:
        raise KeepLayersError(
            f"keep_layers is the selection file {_shown(name, 200)}, which cannot be read ({error}): "
            "give a JSON file that hf-layerdrop search wrote."
        ) from error
    return selection if isinstance(selection, dict) else {}


def _parse_stack(spec: KeepLayers, stack: str, depth: int) -> tuple[int, ...]:
    """Parse the specification of one stack."""
    if spec is None:
        return tuple(range(depth))
    if isinstance(spec, str):
        return _parse_text(spec.strip(), stack, depth)
    if isinstance(spec, slice):
        return _from_slice(spec, stack, depth)
    integer = _as_integer(spec)
    if integer is not None:
        return _from_depth(integer, stack, depth)
    if isinstance(spec, Collection) and not isinstance(spec, bytes | bytearray | memoryview | Mapping):
        return _from_indices(spec, stack, depth)
    raise _unreadable(spec, stack)


def _parse_text(text: str, stack: str, depth: int) -> tuple[int, ...]:
    if _INTEGER.fullmatch(text):
        return _from_depth(int(text), stack, depth)
    if (indices := _indices_in(text)) is not None:
        return _from_indices(indices, stack, depth)
    bounds = _SLICE.fullmatch(text)
    if bounds:
        return _from_slice(slice(*(None if bound is None else int(bound) for bound in bounds.groups())), stack, depth)
    name, colon, argument = text.partition(":")
    strategy = _STRATEGIES.get(name)
    if strategy is None:
        raise _unreadable(text, stack)
    return strategy(argument if colon else None, stack, depth)


def _indices_in(text: str) -> list[int] | None:
    """Read numbers with commas; split and not matched whole, where a pattern would go back and forth over spaces."""
    items = [item.strip() for item in text.removesuffix(",").split(",")]
    return [int(item) for item in items] if all(map(_INTEGER.fullmatch, items)) else None


def _from_depth(count: int, stack: str, depth: int) -> tuple[int, ...]:
    if not 1 <= count <= depth:
        index_hint = f", or '{count},' for the single layer {count}" if -depth <= count < depth else ""
        raise KeepLayersError(
            f"keep_layers asks for a depth of {count}, but the stack {stack!r} has {_layers(depth)}: give a depth "
            f"from 1 to {depth}{index_hint}."
        )
    return evenly_spread(count, depth)


def _from_indices(items: Iterable[Any], stack: str, depth: int) -> tuple[int, ...]:
    kept: set[int] = set()
    for item in _iterated(items, stack):
        index = _as_integer(item)
        if index is None:
            raise KeepLayersError(
                f"keep_layers has {_shown(item)} among the layers of the stack {stack!r}: "
                f"give whole numbers from 0 to {depth - 1}."
            )
        if not -depth <= index < depth:
            raise KeepLayersError(
                f"keep_layers names layer {index}, but the stack {stack!r} has {_layers(depth)}: choose from 0 to "
                f"{depth - 1}, or from -{depth} to -1 counted from the end."
            )
        if index % depth in kept:
            raise KeepLayersError(
                f"keep_layers names layer {index % depth} of the stack {stack!r} twice: name each layer once."
            )
        kept.add(index % depth)
    if not kept:
        raise _nothing_kept(items, stack, depth)
    return tuple(sorted(kept))


def _iterated(items: Iterable[Any], stack: str) -> Iterable[Any]:
    try:
        return iter(items)
    except TypeError as error:  # a numpy array without dimensions calls itself a collection
        raise _unreadable(items, stack) from error


def _from_slice(spec: slice, stack: str, depth: int) -> tuple[int, ...]:
    bounds = [None if bound is None else _as_integer(bound) for bound in (spec.start, spec.stop, spec.step)]
    if bounds.count(None) != (spec.start, spec.stop, spec.step).count(None):
        raise _unreadable(spec, stack)
    if bounds[2] is not None and bounds[2] < 1:
        raise KeepLayersError(
            f"keep_layers is a slice with step {bounds[2]} for the stack {stack!r}: layers keep their order, "
            "give a step of 1 or more."
        )
    kept = tuple(range(depth))[slice(*bounds)]
    if not kept:
        raise _nothing_kept(slice(*bounds), stack, depth)
    return kept


def _keep_all(argument: str | None, stack: str, depth: int) -> tuple[int, ...]:
    if argument is not None:
        raise KeepLayersError(f"keep_layers is {_shown(f'all:{argument}')}, but all takes no number: write 'all'.")
    return tuple(range(depth))


def _keep_every_other(argument: str | None, stack: str, depth: int) -> tuple[int, ...]:
    """Drop the layers at depth d, counted from 1, with d = 0 mod floor(1/p) (the paper's section 3.2.2)."""
    period = 2 if argument is None else _period(argument)
    return tuple(index for index in range(depth) if (index + 1) % period)


def _period(text: str) -> int:
    """Return 1/p, which the formula needs to be whole; ``1/3`` may be written as such."""
    numerator, _, denominator = text.partition("/")
    try:
        rate = float(numerator) / float(denominator or 1)
        if not 0 < rate <= 1:
            raise ValueError(text)
        period = 1 / rate
        whole = round(period)
    except (ValueError, ArithmeticError) as error:
        raise KeepLayersError(
            f"keep_layers is {_shown(f'every_other:{text}')}: p is the share of layers to drop, above 0 and at most "
            "0.5, for example 'every_other:0.25'."
        ) from error
    if rate > 0.5:
        raise KeepLayersError(
            f"keep_layers is {_shown(f'every_other:{text}')}, but every_other cannot drop more than half of the "
            "layers (p at most 0.5): give a depth instead, for example 3."
        )
    if abs(period - whole) > 1e-9:
        raise KeepLayersError(
            f"keep_layers is {_shown(f'every_other:{text}')}, but 1/p is {period:.6g} and must be whole: take p of "
            f"1/{max(2, int(period))} or 1/{int(period) + 1}, or give a depth."
        )
    return whole


def _keep_first(argument: str | None, stack: str, depth: int) -> tuple[int, ...]:
    return tuple(range(_count("first", argument, stack, depth)))


def _keep_last(argument: str | None, stack: str, depth: int) -> tuple[int, ...]:
    return tuple(range(depth - _count("last", argument, stack, depth), depth))


def _keep_nested(argument: str | None, stack: str, depth: int) -> tuple[int, ...]:
    return nested_set(_count("nested", argument, stack, depth), depth)


def _count(name: str, argument: str | None, stack: str, depth: int) -> int:
    count = int(argument) if argument is not None and _INTEGER.fullmatch(argument) else 0
    if not 1 <= count <= depth:
        given = name if argument is None else f"{name}:{argument}"
        raise KeepLayersError(
            f"keep_layers is {_shown(given)}, but the stack {stack!r} has {_layers(depth)}: write '{name}:n' with n "
            f"from 1 to {depth}."
        )
    return count


_STRATEGIES: Mapping[str, Callable[[str | None, str, int], tuple[int, ...]]] = {
    "all": _keep_all,
    "every_other": _keep_every_other,
    "nested": _keep_nested,
    "first": _keep_first,
    "last": _keep_last,
}


def _as_integer(value: Any) -> int | None:
    """Return a whole number of any library as int; None for everything else, bools and arrays included."""
    if isinstance(value, bool) or getattr(value, "ndim", False):  # torch would read the array [6] as the number 6
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _unreadable(spec: Any, stack: str) -> KeepLayersError:
    name = spec.partition(":")[0].strip().lower().replace("-", "_") if isinstance(spec, str) else ""
    nearest = difflib.get_close_matches(name[:64], [*_STRATEGIES, "best", "fastest"], n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? Otherwise give" if nearest else "give"
    return KeepLayersError(
        f"keep_layers is {_shown(spec)} for the stack {stack!r}, which is not known: {hint} {_FORMS}."
    )


def _nothing_kept(spec: Any, stack: str, depth: int) -> KeepLayersError:
    return KeepLayersError(
        f"keep_layers is {_shown(spec)}, which keeps no layer of the stack {stack!r}: keep at least one of its "
        f"{_layers(depth)}."
    )


def _layers(depth: int) -> str:
    return "1 layer" if depth == 1 else f"{depth} layers"


def _listed(depths: Mapping[str, int]) -> str:
    named = [f"{stack!r} ({_layers(depth)})" for stack, depth in depths.items()]
    return f"the stack {named[0]}" if len(named) == 1 else f"the stacks {' and '.join(named)}"


def _shown(value: Any, limit: int = 60) -> str:
    """Show a value of any kind on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
