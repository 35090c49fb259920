"""Cut a model in memory to some of its layers, for good or for the length of a ``with`` block.

A cut is four changes that only make sense together: the list of layers, the layer indices that the layers' caches use,
every config field that has one entry a layer or counts them, and the provenance in ``config.hf_layerdrop``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import CONFIG_KEY, remove_layerdrop, switch_off_native
from hf_layerdrop.keep import KeepLayers, choice_behind, parse_keep_layers
from hf_layerdrop.stacks import Stack, find_stacks
from hf_layerdrop.state import STATE_ATTRIBUTE, find_injected

Undo = Callable[[], Any]

_OF_ONE_CUT = ("strategy", "metric", "score", "distilled_with")  # provenance that a further cut does not inherit


def prune_layers(model: PreTrainedModel, keep_layers: KeepLayers | None, **provenance: Any) -> None:
    """Keep only some layers of ``model``, in place, without copying a weight (3.2.2).

    LayerDrop is removed, since its rates were those of the whole model, and the model's own LayerDrop is set to 0: a
    pruned model drops nothing until it is asked to. What was cut is written to ``config.hf_layerdrop``; ``provenance``
    adds entries such as ``source`` or ``strategy``.

    Raises:
        KeepLayersError: If ``keep_layers`` cannot be read or names layers that do not exist; nothing is changed then.
        UnsupportedModelError: If the model has no stacks, or its layers cannot be taken out.
    """
    cutter = Cutter(model)
    kept = parse_keep_layers(keep_layers, cutter.depths)
    saved = getattr(model.config, CONFIG_KEY, None)
    if find_injected(model) is not None:
        remove_layerdrop(model)
    switch_off_native(model, cutter.stacks)
    cutter.cut(kept)
    setattr(
        model.config,
        CONFIG_KEY,
        cut_provenance(saved, kept, cutter.depths, **{**choice_behind(keep_layers), **provenance}),
    )


@contextmanager
def sub_network(model: PreTrainedModel, keep_layers: KeepLayers | None) -> Iterator[dict[str, tuple[int, ...]]]:
    """Run ``model`` with only some of its layers inside the ``with`` block; yield their indices by stack.

    No weight is copied. The model in the block is the pruned model, cache indices and config included, so that what it
    computes and generates equals the pruned and reloaded one; afterwards all is as before, also after an error.

    Raises:
        KeepLayersError: If ``keep_layers`` cannot be read or names layers that do not exist.
    """
    cutter = Cutter(model)
    kept = parse_keep_layers(keep_layers, cutter.depths)
    with cutter.sub_network(kept):
        yield kept


class Cutter:
    """Cut one model again and again: what has to change is looked up once."""

    def __init__(self, model: PreTrainedModel) -> None:
        injected = find_injected(model)
        self._model = model
        self._draws = list(getattr(injected, STATE_ATTRIBUTE).draws.values()) if injected is not None else []
        if any(draw.paused for draw in self._draws):
            raise LayerDropStateError(
                "The model is a sub-network for the length of a with block; cut it after the block."
            )
        self.stacks = find_stacks(model)
        self.depths = {name: stack.depth for name, stack in self.stacks.items()}
        self.lists = {name: stack.layers(model) for name, stack in self.stacks.items()}
        self._layers = {name: list(layers) for name, layers in self.lists.items()}
        self._numbered = {name: [_numbered_parts(layer) for layer in layers] for name, layers in self._layers.items()}
        self._configs = {name: _configs_of(model, stack) for name, stack in self.stacks.items()}

    def cut(self, kept: Mapping[str, Sequence[int]]) -> list[Undo]:
        """Cut the model to the given layers, in place; return what undoes it, last first."""
        undo: list[Undo] = []
        for name, stack in self.stacks.items():
            if len(kept[name]) == stack.depth:
                continue
            undo.extend(_assign(config, _cut_fields(config, stack, kept[name])) for config in self._configs[name])
            undo.append(_assign(self.lists[name], {"_modules": self._modules(name, kept[name])}))
            for new, old in enumerate(kept[name]):
                undo.extend(_assign(part, {"layer_idx": new}) for part in self._numbered[name][old] if new != old)
        return undo[::-1]

    @contextmanager
    def sub_network(self, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """Be the sub-network inside the ``with`` block: it drops nothing, and saves as the pruned model."""
        saved = getattr(self._model.config, CONFIG_KEY, None)
        provenance = cut_provenance(saved, kept, self.depths)
        undo = [_assign(self._model.config, {CONFIG_KEY: provenance}, absent=saved is None)]
        undo += [_assign(draw, {"paused": True}) for draw in self._draws]
        undo = [*self.cut(kept), *undo]
        try:
            yield
        finally:
            for restore in undo:
                restore()

    def _modules(self, name: str, kept: Sequence[int]) -> dict[str, nn.Module]:
        return {str(new): self._layers[name][old] for new, old in enumerate(kept)}


def pruned_config(config: PreTrainedConfig, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]) -> None:
    """Cut every field of a config that has one entry a layer, or counts them, along with its stacks; in place."""
    for name, stack in stacks.items():
        _assign(config, _cut_fields(config, stack, kept[name]))


def cut_provenance(
    saved: Mapping[str, Any] | None, kept: Mapping[str, Sequence[int]], depths: Mapping[str, int], **entries: Any
) -> dict[str, Any]:
    """Return ``config.hf_layerdrop`` after a cut: indices here and in the root checkpoint, rates 0, history kept."""
    saved = dict(saved or {})
    if any(len(layers) < depths[name] for name, layers in kept.items()):  # an earlier choice is not that of this cut
        saved = {name: value for name, value in saved.items() if name not in _OF_ONE_CUT}
    roots = saved.get("root_keep_layers") or {name: list(range(depth)) for name, depth in depths.items()}
    return {
        **saved,
        "rates": {name: [0.0] * len(layers) for name, layers in kept.items()},
        "keep_layers": {name: list(layers) for name, layers in kept.items()},
        "root_keep_layers": {name: [roots[name][layer] for layer in layers] for name, layers in kept.items()},
        **{name: value for name, value in entries.items() if value is not None},
    }


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _cut_fields(config: PreTrainedConfig, stack: Stack, kept: Sequence[int]) -> dict[str, Any]:
    """Return the new values of the fields of one config: its depth, and lists with one entry a layer."""
    if getattr(config, stack.depth_field, None) != stack.depth or len(kept) == stack.depth:
        return {}
    lists = {
        field: type(value)(value[layer] for layer in kept)
        for field, value in vars(config).items()
        if field.endswith(("layer_types", "layers_types"))
        and isinstance(value, list | tuple)
        and len(value) == stack.depth
    }
    return {**lists, stack.depth_field: len(kept)}


def _configs_of(model: nn.Module, stack: Stack) -> list[PreTrainedConfig]:
    """Return the distinct configs that speak of a stack: the model's, and copies that its submodels hold."""
    prefix = stack.path + "."
    holders = [
        m for name, m in model.named_modules() if not name or stack.path.startswith(name) or name.startswith(prefix)
    ]
    configs = [module.config for module in holders if isinstance(getattr(module, "config", None), PreTrainedConfig)]
    return list({id(config): config for config in configs}.values())


def _assign(target: Any, values: Mapping[str, Any], *, absent: bool = False) -> Undo:
    """Set attributes and return what sets them back, or deletes them if they were ``absent``."""
    before = {name: getattr(target, name, None) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    return partial(_delete, target, tuple(values)) if absent else partial(_assign, target, before)


def _delete(target: Any, names: Sequence[str]) -> None:
    for name in names:
        delattr(target, name)


def _numbered_parts(layer: nn.Module) -> list[nn.Module]:
    """Return the parts of a layer that know its index, under which they file keys and values in a cache."""
    return [part for part in layer.modules() if isinstance(part.__dict__.get("layer_idx"), int)]
