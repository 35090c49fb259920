"""Find what of a layer can be dropped as one (3.2.1): its attention and feed-forward sub-layers, and its heads.

All of it is found by looking: the parts that the layer's ``forward`` calls, in their order, have to spell a chain of
residual sub-layers, attention first, feed-forward last. What does not is refused, since nobody could say what a dropped
sub-layer leaves. Nothing is changed here; `structure_drop.py` does the dropping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from hf_layerdrop.architectures.families import HEAD_COUNTS, HEAD_WIDTHS, OUTPUT_PROJECTIONS, RESIDUAL_ARGUMENTS
from hf_layerdrop.architectures.forward_source import called_parts, returned_values, takes_and_uses
from hf_layerdrop.errors import UnsupportedModelError

# What a part of a dropped sub-layer does in place of its work:
ATTEND = "attend"  # hand on zeros, and nothing beside them
ZERO = "zero"  # hand on zeros
PASS = "pass"  # hand on the input, which a later part of the sub-layer drops
RESIDUAL = "residual"  # hand on the residual, which this part would have added to its input


@dataclass
class SubLayer:
    """An attention or a feed-forward with its residual connection.

    Attributes:
        parts: The modules that do its work, and what each does in place of it when the sub-layer is dropped.
        weights: Modules whose parameters count for nothing when it is dropped: its parts, without the norm that comes
            after the residual, and with the one before it.
    """

    parts: list[tuple[nn.Module, str]]
    weights: nn.ModuleList = field(default_factory=nn.ModuleList)


@dataclass
class Heads:
    """The heads of one attention.

    Attributes:
        projection: The module that joins the heads' outputs; each has a slice of its input.
        count: How many there are. Where heads share keys and values, these are the heads of the queries.
    """

    projection: nn.Module
    count: int


def find_attentions(layer: nn.Module) -> list[SubLayer]:
    """Return the attention sub-layers of a layer: self-attention, then cross-attention if it has one.

    Raises:
        UnsupportedModelError: If the layer is not a chain of residual sub-layers, or an attention returns more than its
            output and its weights.
    """
    return _checked(_sub_layers(layer)[:-1])


def find_feed_forwards(layer: nn.Module) -> list[SubLayer]:
    """Return the feed-forward sub-layer of a layer, in a list.

    Raises:
        UnsupportedModelError: If the layer is not a chain of residual sub-layers.
    """
    return _checked(_sub_layers(layer)[-1:])


def find_heads(layer: nn.Module) -> list[Heads]:
    """Return the heads of each attention of a layer: of self-attention, then of cross-attention if it has one.

    Raises:
        UnsupportedModelError: If there is no attention, or nothing says how many heads it has.
    """
    found = [_heads_of(layer, path) for path, module in layer.named_modules() if _is_attention(module)]
    if not found:
        raise UnsupportedModelError(
            f"A {type(layer).__name__} has no heads that could be dropped: no part of it is an attention with "
            "projections of its own; give structure='layer'."
        )
    return found


FINDERS: dict[str, Callable[[nn.Module], Sequence[SubLayer | Heads]]] = {
    "attention": find_attentions,
    "ffn": find_feed_forwards,
    "head": find_heads,
}


@dataclass
class _Part:
    """A part that a layer's forward calls: attention (a), norm (n), output with residual (r), other weights (f)."""

    kind: str
    module: nn.Module


def _sub_layers(layer: nn.Module) -> list[SubLayer]:
    """Read the parts of a layer as sub-layers: one or two attentions, then a feed-forward."""
    try:
        parts = list(_parts(layer))
        spelled = "".join(part.kind for part in parts)
        sub_layers = [_sub_layer(sub_layer) for sub_layer in _split(spelled, parts)]
    except OSError as error:
        raise UnsupportedModelError(
            f"The source of {type(layer).__name__} cannot be read ({error}), which says what its sub-layers are; give "
            "structure='layer' or 'head'."
        ) from error
    if len({id(part.module) for part in parts}) < len(parts) or not sub_layers:
        raise UnsupportedModelError(
            f"The sub-layers of a {type(layer).__name__} cannot be told apart: its forward is not a chain of one or "
            "two attentions and a feed-forward, each with a residual and a norm of its own; give structure='layer' or "
            "'head'."
        )
    return sub_layers


# How sub-layers may follow each other: norms before, after the residual, around, or inside the part that adds it.
_CHAINS = [
    re.compile(chain)
    for chain in (
        "(nar?)(nar?)?(nf+r?)",
        "(an)(an)?(f+n)",
        "(nan)(nan)?(nf+n)",
        "(ar)(ar)?(f+r)",
    )
]


def _split(spelled: str, parts: Sequence[_Part]) -> Iterator[Sequence[_Part]]:
    """Cut the parts of a layer into its sub-layers; into none if they do not spell a chain of them."""
    for chain in _CHAINS:
        if found := chain.fullmatch(spelled):
            for group in range(1, 4):
                if found[group] is not None:
                    yield parts[found.start(group) : found.end(group)]
            return


def _sub_layer(parts: Sequence[_Part]) -> SubLayer:
    before = parts[0].module if parts[0].kind == "n" else None
    work = [part for part in parts if part.kind != "n"]
    steps = [(part.module, ATTEND if part.kind == "a" else PASS) for part in work]
    if work[-1].kind == "r":
        steps[-1] = (work[-1].module, RESIDUAL)
    elif work[-1].kind == "f":
        steps[-1] = (work[-1].module, ZERO)
    weights = [before] if before is not None else []
    for part in work:
        weights += (
            [child for child in part.module.children() if not is_norm(child)] if part.kind == "r" else [part.module]
        )
    return SubLayer(steps, nn.ModuleList(weights))


def _parts(layer: nn.Module) -> Iterator[_Part]:
    """Yield the parts that a layer's forward calls, in order; those that only hold an attention are looked into."""
    children = dict(layer.named_children())
    for name, child in [(name, children[name]) for name in called_parts(type(layer), children)]:
        if isinstance(child, nn.ModuleList):
            if children.pop(name, None) is not None:
                for element in child:
                    yield from _parts(element)
        elif next(child.parameters(), None) is not None:
            yield from _parts(child) if _holds_attention(child) else [_Part(_kind(child), child)]


def _kind(part: nn.Module) -> str:
    adds_residual = any(takes_and_uses(type(part), argument) for argument in RESIDUAL_ARGUMENTS)
    if _is_attention(part):
        return "?" if adds_residual else "a"
    if is_norm(part):
        return "n"
    return "r" if adds_residual else "f"


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm of any kind."""
    return "norm" in type(module).__name__.lower()


def _is_attention(module: nn.Module) -> bool:
    """Tell an attention, which has the projections itself, from a part that holds one."""
    if "attention" not in type(module).__name__.lower():
        return False
    return sum(_input_width(child) is not None for child in module.children()) > 1


def _holds_attention(module: nn.Module) -> bool:
    return not _is_attention(module) and any(_is_attention(part) for part in module.modules())


def _input_width(module: nn.Module) -> int | None:
    """Return the width of the input of a linear layer of any kind, None for other modules."""
    width = getattr(module, "in_features", getattr(module, "nx", None))
    return width if isinstance(width, int) else None


def _checked(sub_layers: list[SubLayer]) -> list[SubLayer]:
    """Refuse sub-layers whose parts return more than dropped ones could hand on."""
    for part, instead in (step for sub_layer in sub_layers for step in sub_layer.parts):
        values = frozenset([1]) if _input_width(part) else returned_values(type(part))  # type: ignore[arg-type]
        if values != {1} and not (instead == ATTEND and values == {2}):
            said = " or ".join(str(count or "several") for count in values)
            raise UnsupportedModelError(
                f"A {type(part).__name__} returns {said} values, of which LayerDrop can make up its output and its "
                "attention weights only; give structure='layer' or 'head'."
            )
    return sub_layers


def attention_values(kind: type) -> int:
    """Return how many values an attention of this class returns: its output, and mostly its weights."""
    return max(filter(None, returned_values(kind)))


def _heads_of(layer: nn.Module, path: str) -> Heads:
    attention = layer.get_submodule(path)
    beside = getattr(layer.get_submodule(path.rpartition(".")[0]), "output", None)
    for holder in (attention, beside):
        for name in OUTPUT_PROJECTIONS:
            projection = getattr(holder, name, None)
            if isinstance(projection, nn.Module) and (width := _input_width(projection)):
                return Heads(projection, _count_heads(attention, width))
    raise UnsupportedModelError(
        f"The heads of a {type(attention).__name__} cannot be dropped: its output projection was looked for under the "
        f"names {', '.join(OUTPUT_PROJECTIONS)} and not found; give structure='layer'."
    )


def _count_heads(attention: nn.Module, width: int) -> int:
    """Return how many heads share the input of the output projection, by their width, else by their number."""
    sizes = [width // size for name in HEAD_WIDTHS if (size := _number(attention, name)) and width % size == 0]
    counts = [count for name in HEAD_COUNTS if (count := _number(attention, name)) and width % count == 0]
    found = [*sizes[:1], *counts[:1]]
    if len(set(found)) != 1:
        raise UnsupportedModelError(
            f"The heads of a {type(attention).__name__} cannot be counted: its output projection is {width} wide, and "
            f"its attributes say {' or '.join(map(str, found)) or 'nothing'}; give structure='layer'."
        )
    return found[0]


def _number(module: nn.Module, name: str) -> int | None:
    value = getattr(module, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
