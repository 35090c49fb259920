"""Numbers of layers outside of their stack's own config: who speaks of layers by number is told of a cut.

A dropped layer hands its input on, so what a sub-network has after ``n`` layers of the whole model is what it has after
those of them that it keeps. Numbers of hidden states are changed by that rule.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from hf_layerdrop.architectures.families import (
    COUNTING_FROM_ONE,
    FIRST_TAPS,
    LAYER_TAPS,
    MIDWAY,
    RESCALING,
    TRAILING_TAPS,
    UNTOLD_TAPS,
    Tap,
    stage_after,
)
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

Kept = Mapping[str, Sequence[int]]

# What makes of a name a pattern that may mean a layer without spelling its path.
_PATTERN = re.compile(r"[\\*?\[\](){}|^$+]|^re:")
_NUMBERS_IN_PATTERN = re.compile(r"(?<![\w{])\d+(?![\w}])")


def ran_of(kept: Sequence[int], layers: int) -> int:
    """Return how many of the kept layers are among the first ``layers``."""
    return sum(layer < layers for layer in kept)


def tap_changes(
    config: PreTrainedConfig, stacks: Mapping[str, Stack], kept: Kept
) -> Iterator[tuple[PreTrainedConfig, dict[str, Any]]]:
    """Yield the configs in which fields take hidden states by number, and the new values of these fields."""
    for name, stack in stacks.items():
        if len(kept.get(name, ())) in (0, stack.depth):
            continue
        for holder, field, tap in _taps(config, name, stack):
            value = getattr(holder, field)
            changed = _renumbered(value, tap, stack.depth, kept[name])
            if changed != value:
                yield holder, {field: changed}
        for field in TRAILING_TAPS.get(stack.model_type, ()):
            holder = stack.config(config)
            count = getattr(holder, field)
            yield holder, {field: sum(layer >= stack.depth - count for layer in kept[name])}


def takes_by_number(config: PreTrainedConfig, stacks: Mapping[str, Stack]) -> bool:
    """Tell whether a field takes hidden states by number."""
    return any(True for name, stack in stacks.items() for _ in _taps(config, name, stack))


def check_taps(model: PreTrainedModel, stacks: Mapping[str, Stack], kept: Kept) -> None:
    """Refuse a cut after which a head of the model could not take what it takes by number.

    Raises:
        UnsupportedModelError: If two of the layers that it looks for would be one, or none of those before one is kept.
    """
    cut = {name: stack for name, stack in stacks.items() if len(kept[name]) < stack.depth}
    _check_untold(model, cut, kept)
    for name, stack in cut.items():
        for _, field, tap in _taps(model.config, name, stack):
            if not _reads(model, field):
                continue
            value = getattr(_holder(model.config, stack, tap), field)
            numbers = [_ran(number, tap, stack.depth) for number in _as_list(value)]
            left = [ran_of(kept[name], number) for number in numbers]
            if (len(set(left)) < len(left) and not tap.repeats) or min(left, default=tap.shift) < tap.shift:
                raise _one_for_two(model, name, kept[name], f"{field} = {value}", numbers)
        _check_stages(model, name, stack, kept[name])
        if stack.model_type in MIDWAY:
            _check_middle(model, name, stack.depth // 2, kept[name])


def _check_middle(model: PreTrainedModel, name: str, middle: int, kept: Sequence[int]) -> None:
    if len(kept) < 2 or ran_of(kept, middle) != len(kept) // 2:
        raise UnsupportedModelError(
            f"{type(model).__name__} adds what it predicts after {middle} layers of its {name}, half of them: it would "
            f"elsewhere with {name}={list(kept)}; keep half of what you keep from the first {middle}."
        )


def _check_stages(model: PreTrainedModel, name: str, stack: Stack, kept: Sequence[int]) -> None:
    """Refuse a cut after which a backbone, or a head that reads it, would give or take one hidden state for two."""
    chosen = getattr(stack.config(model.config), "out_indices", None) or ()
    gone = type(model).__name__ in COUNTING_FROM_ONE and any(place - 1 not in kept for place in chosen)
    if any(isinstance(part, BackboneMixin) for part in model.modules()):
        left = [stage_after(place, stack.depth, kept) for place in chosen]
        gone = gone or len(set(left)) < len(left)
    if gone:
        raise _one_for_two(model, name, kept, f"out_indices = {chosen}", chosen)


def check_rescaled(model: PreTrainedModel, stacks: Mapping[str, Stack], kept: Kept) -> None:
    """Refuse a cut in memory of layers whose weights are divided by their numbers at present.

    Raises:
        UnsupportedModelError: If they are, and a layer would be taken for one that has another divisor.
    """
    for name, stack in stacks.items():
        flag, field = RESCALING.get(stack.model_type, ("", ""))
        every = getattr(stack.config(model.config), field, 0) if field else 0
        moved = every and any(old // every != new // every for new, old in enumerate(kept[name]))
        if moved and getattr(stack.owner(model), flag):
            raise UnsupportedModelError(
                f"{type(model).__name__} has divided the weights of its layers by their numbers, for evaluation "
                f"({field} = {every}): cut it as it is loaded (keep_layers at from_pretrained), before it is evaluated."
            )


def _check_untold(model: PreTrainedModel, cut: Mapping[str, Stack], kept: Kept) -> None:
    part, path = UNTOLD_TAPS.get(model.config.model_type, ("", ""))
    value: Any = model.config
    for field in path.split(".") if path else ():
        value = getattr(value, field, None)
    if path and value and (named := next((name for name in cut if part in name), None)):
        raise UnsupportedModelError(
            f"{type(model).__name__} takes hidden states by number ({path} = {value}), which cannot be told of a cut "
            f"of its {named}: keep all layers of it."
        )
    name, listing = FIRST_TAPS.get(model.config.model_type, ("", ""))
    first = (getattr(cut[name].config(model.config), listing) or [None])[0] if name in cut else None
    if first is not None and first not in kept[name]:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes the hidden state after layer {first} of its {name}, the first of {listing}, "
            f"which is not in {name}={list(kept[name])}: keep it."
        )


def _one_for_two(
    model: PreTrainedModel, name: str, kept: Sequence[int], said: str, numbers: Sequence[int]
) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} takes the hidden states after {', '.join(map(str, numbers))} layers of its {name} "
        f"({said}), which are not all different, or not there, in {name}={list(kept)}: keep a layer before each of "
        "them."
    )


def renumber_generation(
    generation: GenerationConfig | None, stacks: Mapping[str, Stack], kept: Kept, *, quiet: bool = False
) -> None:
    """Change the fields of a generation config that speak of the layers of a decoder, in place."""
    name = next((name for name in ("decoder", "text", "layers") if name in stacks), None)
    if generation is None or name is None or len(kept[name]) == stacks[name].depth:
        return
    layers, depth = list(kept[name]), stacks[name].depth
    if heads := getattr(generation, "alignment_heads", None):
        _renumber_alignment(generation, heads, layers, quiet=quiet)
    if type(exit_at := getattr(generation, "assistant_early_exit", None)) is int:
        generation.assistant_early_exit = ran_of(layers, exit_at) or None
    if isinstance(chosen := getattr(generation, "dola_layers", None), list):
        generation.dola_layers = sorted({ran_of(layers, layer % (depth + 1)) for layer in chosen})


def _renumber_alignment(
    generation: GenerationConfig, heads: Sequence[Sequence[int]], layers: Sequence[int], *, quiet: bool
) -> None:
    """Renumber the heads by which Whisper finds the times of words; without any it has to know that it has none."""
    left = [[layers.index(layer), head] for layer, head in heads if layer in layers]
    if left:
        generation.alignment_heads = left
    else:
        del generation.alignment_heads
    if len(left) < len(heads) and not quiet:
        logger.warning(
            "%d of %d alignment heads, by which times of words are found, went with the layers that were cut%s.",
            len(heads) - len(left),
            len(heads),
            "" if left else ": there are no times of words any more",
        )


def renumber_quantization(quantization: Any, stacks: Mapping[str, Stack], kept: Kept) -> Any:
    """Return a quantization config whose lists name the layers by their new numbers; those of cut layers are gone.

    Raises:
        UnsupportedModelError: If a pattern in it may mean a layer by its number.
    """
    if quantization is None or all(len(kept[name]) == stack.depth for name, stack in stacks.items()):
        return quantization
    if isinstance(quantization, Mapping):
        return _renamed(quantization, stacks, kept)
    changed = copy.copy(quantization)
    for field, value in vars(quantization).items():
        if isinstance(value, str | list | tuple | set | Mapping):
            setattr(changed, field, _renamed(value, stacks, kept))
    return changed


def names_layers(quantization: Any, stacks: Mapping[str, Stack], kept: Kept) -> bool:
    """Tell whether a cut changes anything in a quantization config."""
    changed = renumber_quantization(quantization, stacks, kept)
    as_dict = (vars(one) if hasattr(one, "__dict__") else one for one in (quantization, changed))
    return next(as_dict) != next(as_dict)


def _renamed(value: Any, stacks: Mapping[str, Stack], kept: Kept) -> Any:
    if isinstance(value, str):
        return _new_name(value, stacks, kept)
    if isinstance(value, Mapping):
        pairs = ((_renamed(key, stacks, kept), _renamed(entry, stacks, kept)) for key, entry in value.items())
        kind: Any = type(value)  # a dict of any kind, made from pairs
        return kind((key, entry) for key, entry in pairs if key is not None)
    if isinstance(value, list | tuple | set):
        entries = (_renamed(entry, stacks, kept) for entry in value)
        return type(value)(entry for entry, old in zip(entries, value, strict=True) if entry is not None or old is None)
    return value


def _new_name(name: str, stacks: Mapping[str, Stack], kept: Kept) -> str | None:
    """Return the name of a module after a cut, None if it is cut away, and what is no name of one as it is."""
    for stack_name, stack in stacks.items():
        tail = re.escape(stack.path.partition(".")[2] or stack.path)
        found = re.fullmatch(rf"((?:.*\.)?{tail}\.)(\d+)((?:\..*)?)", name)
        if found:
            layer = int(found[2])
            if layer not in kept[stack_name]:
                return None if layer < stack.depth else name
            return f"{found[1]}{list(kept[stack_name]).index(layer)}{found[3]}"
    if _PATTERN.search(name) and _NUMBERS_IN_PATTERN.search(name):
        raise UnsupportedModelError(
            f"The quantization config has the pattern {name!r}, which may mean layers by their numbers, and a cut "
            "gives layers new numbers: name the modules one by one, or cut the model before it is quantized."
        )
    return name


def _taps(config: PreTrainedConfig, name: str, stack: Stack) -> Iterator[tuple[PreTrainedConfig, str, Tap]]:
    """Yield the fields that take hidden states of a stack by number, and the configs that have them."""
    for field, tap in LAYER_TAPS.items():
        holder = _holder(config, stack, tap)
        if holder is not None and (not tap.part or tap.part in name) and _as_list(vars(holder).get(field)):
            yield holder, field, tap


def _holder(config: PreTrainedConfig, stack: Stack, tap: Tap) -> PreTrainedConfig | None:
    if not tap.part:
        return stack.config(config)
    if not stack.config_path:
        return None
    above: Any = config
    for part in stack.config_path.split(".")[:-1]:
        above = getattr(above, part)
    return above


def _renumbered(value: Any, tap: Tap, depth: int, kept: Sequence[int]) -> Any:
    if type(value) is int:
        new = ran_of(kept, _ran(value, tap, depth)) - tap.shift
        return new - len(kept) - 1 if value < 0 else new
    return type(value)(_renumbered(number, tap, depth, kept) for number in value)


def _ran(number: int, tap: Tap, depth: int) -> int:
    """Return after how many layers a hidden state is taken that a field knows by this number."""
    return number + depth + 1 if number < 0 else number + tap.shift


def _as_list(value: Any) -> list[int]:
    values = [value] if type(value) is int else value
    known = isinstance(values, list | tuple) and all(type(number) is int for number in values)
    return list(values) if known else []


def _reads(model: PreTrainedModel, field: str) -> bool:
    """Tell whether anything in a model reads a field of its config: the model without the head does not."""
    return any(field in _source(cls) for cls in {type(part) for part in model.modules()})


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # made while the program ran
        return ""
