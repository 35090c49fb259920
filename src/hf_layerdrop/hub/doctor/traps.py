"""What other tools trip over in a checkpoint, and what becomes of it here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hf_layerdrop.architectures.families import (
    FEATURE_LAYER_FIELDS,
    KINDS_FIELD,
    LAYER_TAPS,
    NATIVE_RATE_FIELDS,
    SLICES_FIELD,
    bias_in_first_block,
)
from hf_layerdrop.architectures.names import stack_name
from hf_layerdrop.architectures.shared_kv import lenders
from hf_layerdrop.checkpoints.headers import TensorInfo
from hf_layerdrop.checkpoints.provenance import own_provenance, root_layers, saved_provenance
from hf_layerdrop.checkpoints.stored_model import StoredModel, StoredStack
from hf_layerdrop.errors import CheckpointError
from hf_layerdrop.hub.doctor.fields import config_path, said_of_layer
from hf_layerdrop.samplers.draws import shallowest_depth

Signature = Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Trap:
    """A trap, where it is (a stack, or empty for the whole model), and what it means."""

    name: str
    stack: str
    says: str


def find_traps(model: StoredModel) -> list[Trap]:
    """Return the traps of a checkpoint."""
    traps = [
        Trap(name, stack.name, says)
        for stack in model.stacks
        for name, look in _OF_A_STACK.items()
        for says in look(stack)
    ]
    for stack in model.stacks:
        traps += [Trap("depths never drawn", stack.name, says) for says in _never_drawn(model, stack)]
    return traps + [Trap(name, "", says) for name, look in _OF_A_MODEL.items() for says in look(model)]


def kinds_of(stack: StoredStack) -> list[str]:
    """Return the kinds that the config says the layers of a stack are of."""
    kinds = stack.config.get(KINDS_FIELD)
    if not isinstance(kinds, list) or len(kinds) != stack.depth:
        return []
    return sorted({str(kind) for kind in kinds})


def _position_bias(stack: StoredStack) -> Iterator[str]:
    bias = bias_in_first_block(stack.config.get("model_type"))
    if bias is not None:
        yield (
            f"block 0 owns {' and '.join(bias.weights)} for all: a cut moves it to the first kept block, and it is "
            "trained also when block 0 is dropped"
        )


def _kinds(stack: StoredStack) -> Iterator[str]:
    if len(kinds := kinds_of(stack)) > 1:
        yield f"layers are of several kinds ({', '.join(kinds)}): {KINDS_FIELD} is cut along, each keeps its own"


def _borrowed(stack: StoredStack) -> Iterator[str]:
    found = lenders(stack.config, stack.depth)
    if found:
        lent, borrowing = sorted(set(found.values())), sorted(found)
        yield (
            f"layers {_listed(borrowing)} borrow keys and values, or where to look, from layers {_listed(lent)}: name "
            "those in never_drop, and keep both or neither in a cut"
        )


def _unlike(stack: StoredStack) -> Iterator[str]:
    """Find layers that are built otherwise by their number alone: like others by the config, unlike them in shape."""
    part = stack.config
    bias = bias_in_first_block(part.get("model_type"))
    layers = [_signature(layer, set(bias.weights) if bias else set()) for layer in stack.layers]
    alike: dict[str, list[int]] = {}
    for number in range(stack.depth):
        alike.setdefault(said_of_layer(part, stack.depth, number), []).append(number)
    for numbers in alike.values():
        usual = _usual([layers[number] for number in numbers], layers)
        if unlike := [number for number in numbers if layers[number] != usual]:
            yield (
                f"layers {_listed(unlike)} differ from others ({_difference(layers[unlike[0]], usual)}), and no field "
                "of the config says so: a cut that gives one of them another number, or its number to another layer, "
                "is refused"
            )


def _slices(stack: StoredStack) -> Iterator[str]:
    if stack.config.get(SLICES_FIELD):
        yield "its embeddings hold a slice for each layer, which no cut takes along: it can be trained, and not pruned"


def _native(stack: StoredStack) -> Iterator[str]:
    part = stack.config
    for field in NATIVE_RATE_FIELDS[stack_name(stack.path)]:
        if isinstance(rate := part.get(field), float) and rate > 0:
            yield (
                f"{config_path(stack)}{field} = {rate}, the model's own LayerDrop: ours takes that rate over where "
                "none is given, never on top; in a pruned checkpoint it is 0"
            )
            return


def _never_drawn(model: StoredModel, stack: StoredStack) -> Iterator[str]:
    saved = own_provenance(model.headers.config)
    rate = max((saved.get("rates") or {}).get(stack.name, ()), default=0.0)
    sampler = (saved.get("trained_with") or {}).get("sampler")
    version = saved.get("sampler_version", 1)
    if sampler == "depth" and rate > 0 and version < 3:
        yield (
            "trained with an older depth sampler, whose depth of 1 was the first layer and is now the last: where one "
            "layer was trained, cut to it by --keep-layers '0,'"
        )
    if sampler == "depth" and 0 < rate <= 0.5 and (least := shallowest_depth(rate, stack.depth, version)) > 1:
        yield (
            f"trained with the depth sampler at rate {rate:g}, which drew {least} to {stack.depth} layers: a cut to "
            "fewer was never trained and is poor; for a depth of r train at (1 - r / N) / 2 or more"
        )


def _passed_over(model: StoredModel) -> Iterator[str]:
    if model.ignored:
        yield (
            f"{len(model.ignored)} weights, such as {model.ignored[0]!r}, are no part of {model.architecture}, which "
            "passes over them, as its class declares: they are not counted here, and a cut leaves them out"
        )


def _other_class(model: StoredModel) -> Iterator[str]:
    named = model.headers.architectures
    if named and model.architecture not in named:
        yield (
            f"the config names {', '.join(named)}, but the weights are those of {model.architecture}: as "
            "that it is loaded and saved here, where plain transformers makes up what is missing"
        )


def _damaged(model: StoredModel) -> Iterator[str]:
    try:
        root_layers(saved_provenance(model.headers.config), model.depths)
    except CheckpointError as error:
        yield str(error)


def _by_number(model: StoredModel) -> Iterator[str]:
    for field in FEATURE_LAYER_FIELDS:
        if (value := model.headers.config.get(field)) is not None:
            after = "which a cut changes along" if field in LAYER_TAPS else "which a cut leaves, for other layers"
            yield f"{field} = {value} picks hidden states by number, {after}"


def _tied(model: StoredModel) -> Iterator[str]:
    if model.tied:
        yield "input and output embeddings are one tensor: they stay tied, and are counted once"


def _own_code(model: StoredModel) -> Iterator[str]:
    if model.headers.config.get("auto_map"):
        yield "it comes with code of its own (auto_map), which is not run unless you ask for it (trust_remote_code)"


_OF_A_STACK = {
    "position bias": _position_bias,
    "kinds of layers": _kinds,
    "borrowed": _borrowed,
    "unlike layers": _unlike,
    "slices": _slices,
    "native LayerDrop": _native,
}
_OF_A_MODEL = {
    "hidden states by number": _by_number,
    "tied weights": _tied,
    "own code": _own_code,
    "passed over": _passed_over,
    "other class": _other_class,
    "damaged entry": _damaged,
}


def _signature(layer: Sequence[tuple[str, TensorInfo]], spared: set[str]) -> Signature:
    """Return names and shapes of the weights of a layer, without those of modules that one layer owns for all."""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, tensor in layer:
        if not spared & set(name.split(".")):
            shapes[name] = (*shapes.get(name, ()), tensor.shape)
    return {name: tuple(sorted(found)) for name, found in shapes.items()}


def _usual(layers: Sequence[Signature], of_all: Sequence[Signature]) -> Signature:
    """Return what most of the layers are; of two as frequent, what more layers of the stack are."""
    return max(layers, key=lambda layer: (layers.count(layer), of_all.count(layer)))


def _difference(layer: Signature, usual: Signature) -> str:
    for name in (*usual, *layer):
        if name not in layer:
            return f"no {name}"
        if name not in usual:
            return f"{name} besides"
        if layer[name] != usual[name]:
            shapes = [" x ".join(map(str, shape)) for shape in dict.fromkeys(layer[name])]
            return f"{name} is {', '.join(shapes)}" if len(layer[name]) == 1 else f"{len(layer[name])} of {name}"
    return ""


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
