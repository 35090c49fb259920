"""Which sub-networks are measured or trained, from a list of depths on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import KeepLayersError, LayerDropConfigError
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.keep_layers import KeepLayers, format_keep_layers, is_encoder_decoder, parse_keep_layers

if TYPE_CHECKING:
    from hf_layerdrop.checkpoints.recommended import RecommendedSets

KeptByStack = dict[str, tuple[int, ...]]


def parse_depths(
    text: str, depths: Mapping[str, int], recommended: Callable[[], RecommendedSets] | None = None
) -> list[KeptByStack]:
    """Return the sub-networks that ``text`` lists, in its order.

    ``6,3,1`` are depths, and ``first:6,every_other`` rules, as ``keep_layers`` reads them: of the only stack, or of
    both stacks of an encoder-decoder. ``decoder=4,2,1`` are those of one stack, while others stay whole;
    ``encoder=6;decoder=4,2,1`` also cuts the other, and ``encoder=6,4;decoder=6,2`` go along in pairs. ``all`` in place
    of a list is each depth of the stack, deepest first; without a name, each that all stacks have, after the whole.
    ``recommended`` reads the recommended sets that ``best:6`` and ``fastest:0.99`` go by, once for the list.

    Raises:
        KeepLayersError: If it cannot be read, or does not fit the stacks.
    """
    read = recommended and cache(recommended)
    if "=" not in text:
        return [_kept(spec, depths, text, read) for spec in _bare(text, depths)]
    lists = {stack: _listed(value, stack, depths) for stack, value in _by_stack(text, depths).items()}
    longest = max(map(len, lists.values()))
    if uneven := [stack for stack, values in lists.items() if len(values) not in (1, longest)]:
        raise KeepLayersError(
            f"{text!r} lists {len(lists[uneven[0]])} depths of the stack {uneven[0]!r} beside {longest} of another: "
            "list as many of each, or a single one that goes with all."
        )
    columns = {stack: values * longest if len(values) == 1 else values for stack, values in lists.items()}
    rows = zip(*columns.values(), strict=True)
    return [_kept(dict(zip(columns, row, strict=True)), depths, text, read) for row in rows]


def check_once(kept: Sequence[KeptByStack]) -> None:
    """Refuse a list to train that has a sub-network in it twice.

    Raises:
        LayerDropConfigError: If it has.
    """
    if twice := [one for one in kept if kept.count(one) > 1]:
        raise LayerDropConfigError(f"--depths lists layers {format_keep_layers(twice[0])} twice: list each once.")


def no_other_drop(layerdrop: LayerDropConfig | None, schedule: str | None) -> LayerDropConfig:
    """Return the LayerDrop of a training for a list of depths, which draws nothing else.

    Raises:
        LayerDropConfigError: If rates or a schedule are given beside.
    """
    if layerdrop is not None or schedule is not None:
        raise LayerDropConfigError(
            "--depths trains these depths and draws nothing else: leave out --layerdrop and --schedule."
        )
    return LayerDropConfig(0.0)


def depths_of_step(listed: str | None, per_step: int | None) -> dict[str, Any]:
    """Return the settings of `DepthTraining` for so many depths a step: by default one, which learns from the labels.

    Raises:
        LayerDropConfigError: If no depths are listed.
    """
    if per_step is not None and listed is None:
        raise LayerDropConfigError(
            f"--depths-per-step is {per_step} without depths; add --depths with a list, such as 12,6,4,3."
        )
    if per_step in (None, 1):  # measured: docs/depths.md
        return {"per_step": 1, "always": (), "distillation_weight": 0.0}
    return {"per_step": per_step}


def _kept(
    spec: KeepLayers, depths: Mapping[str, int], text: str, recommended: Callable[[], RecommendedSets] | None
) -> KeptByStack:
    try:
        return parse_keep_layers(spec, depths, recommended=recommended)
    except KeepLayersError as error:
        shown = text if len(text) < 60 else f"{text[:56]} ..."
        raise KeepLayersError(f"In the list of depths {shown!r}, {error}") from error


def _bare(text: str, depths: Mapping[str, int]) -> list[str | None]:
    """Return what is listed without a stack's name; None is the whole model."""
    if text.strip() != "all":
        return [*_items(text, min(depths.values()))]
    if len(depths) > 1 and not is_encoder_decoder(depths):
        example = f"{next(iter(depths))}=all"
        raise KeepLayersError(f"'all' depths of which stack? The model has {', '.join(depths)}: write {example!r}.")
    shallowest = min(depths.values())
    equal = len(set(depths.values())) == 1
    return [None, *map(str, range(shallowest - equal, 0, -1))]


def _by_stack(text: str, depths: Mapping[str, int]) -> dict[str, str]:
    parts = [[piece.strip() for piece in part.partition("=")] for part in text.split(";")]
    stacks = [stack for stack, _, _ in parts]
    for stack in stacks:
        if stack not in depths or stacks.count(stack) > 1:
            raise KeepLayersError(
                f"{text!r} names the stack {stack!r}, but this model has {' and '.join(depths)}: write each once, such "
                f"as '{next(iter(depths))}={min(depths.values())},1'."
            )
    return {stack: value for stack, _, value in parts}


def _listed(text: str, stack: str, depths: Mapping[str, int]) -> list[str]:
    if text == "all":
        return [*map(str, range(depths[stack], 0, -1))]
    return _items(text, depths[stack])


def _items(text: str, deepest: int) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise KeepLayersError(
            f"{text!r} is no list of depths, which are from 1 to {deepest}: list some, such as "
            f"'{deepest},{max(1, deepest // 2)},1', or write 'all'."
        )
    return items
