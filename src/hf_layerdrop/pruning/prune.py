"""Cut a model in memory to some of its layers, for good or for the length of a ``with`` block.

A cut is four changes that only make sense together: the list of layers, the layer indices that the layers' caches use,
every config field that has one entry a layer or counts them, and the provenance in ``config.hf_layerdrop``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar
from weakref import ref

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import Rebuilds, built_on_meta, check_lenders, may_differ, remember
from hf_layerdrop.architectures.families import bias_in_first_block, cut_fields
from hf_layerdrop.architectures.layer_idx import numbered_parts
from hf_layerdrop.architectures.layer_numbers import (
    check_rescaled,
    check_taps,
    renumber_generation,
    renumber_quantization,
    takes_by_number,
    tap_changes,
)
from hf_layerdrop.architectures.stacks import Stack, configs_of, find_stacks
from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.checkpoints.adapters import check_adapters, cut_adapters
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, root_layers, saved_provenance
from hf_layerdrop.checkpoints.recommended_file import recommended_of
from hf_layerdrop.errors import LayerDropStateError, UnsupportedModelError
from hf_layerdrop.injection.changes import Changes, all_or_nothing
from hf_layerdrop.injection.first_block_bias import borrowed_attributes, owners_of_bias
from hf_layerdrop.injection.inject import check_free, take_out
from hf_layerdrop.injection.injected import STATE_ATTRIBUTE, injected_models
from hf_layerdrop.injection.native import switch_off_native
from hf_layerdrop.injection.open_blocks import close_block, for_good, open_block, opened_blocks, turn_of_thread
from hf_layerdrop.injection.own_config import own_config
from hf_layerdrop.injection.recorded_outputs import recording_models, take_back_recording
from hf_layerdrop.pruning.generation_cache import settle_cache
from hf_layerdrop.pruning.remembered import forget, remembered
from hf_layerdrop.samplers.keep_layers import (
    KeepLayers,
    choice_behind,
    format_keep_layers,
    parse_keep_layers,
    resolve,
)

M = TypeVar("M", bound=nn.Module)

_OF_ONE_CUT = ("strategy", "metric", "score", "distilled_with", "healed_with")  # not for a further cut


def prune_layers(model: M, keep_layers: KeepLayers, **provenance: object) -> M:
    """Keep only some layers of ``model``, in place, without copying a weight, and return it (3.2.2).

    LayerDrop is removed, since its rates were those of the whole model, and the model's own LayerDrop is set to 0: a
    pruned model drops nothing until it is asked to. What was cut is written to ``config.hf_layerdrop``; ``provenance``
    adds entries such as ``source`` or ``strategy``. Adapters of PEFT in the model, or around it, are cut along.

    Raises:
        KeepLayersError: If ``keep_layers`` cannot be read or names layers that do not exist; nothing is changed then.
        LayerDropStateError: If ``model`` is a part of an injected one, or is called within a block of `sub_network`.
        UnsupportedModelError: If the model has no stacks, or its layers cannot be taken out.
    """
    with for_good("prune_layers", transformers_model(model)):
        _prune(model, keep_layers, provenance)
    return model


def _prune(model: nn.Module, keep_layers: KeepLayers, provenance: Mapping[str, object]) -> None:
    cutter, inner = Cutter(model), transformers_model(model)
    keep_layers = cutter.resolve(keep_layers)
    kept = parse_keep_layers(keep_layers, cutter.depths)
    cutter.check(kept)
    check_adapters(model)
    adapters = cut_adapters(inner, partial(cutter.renamed, kept), format_keep_layers(kept))
    saved = saved_provenance(inner.config)
    root_layers(saved, cutter.depths)
    noted = cut_provenance(saved, kept, cutter.depths, **{**choice_behind(keep_layers), **provenance})
    saved_provenance({CONFIG_KEY: noted})  # what cannot be saved is refused before anything is changed
    with all_or_nothing(inner) as changes:  # an interrupt, too: whole as before or cut, and nothing between
        for injected in injected_models(inner).values():
            take_out(injected, changes)
        switch_off_native(inner)
        if (generation := getattr(inner, "generation_config", None)) is not None:
            renumber_generation(generation, cutter.stacks, kept)
        for part, quantization in _quantized(inner.config, cutter.stacks, kept):
            changes.assign(part, {"quantization_config": quantization})
        cutter.cut(kept, changes)
        for adapter, fields in adapters:
            changes.assign(adapter, fields)
        changes.assign(inner.config, {CONFIG_KEY: noted})
        settle_cache(inner, cutter.stacks)
    forget(inner)


@contextmanager
def sub_network(model: nn.Module, keep_layers: KeepLayers) -> Iterator[dict[str, tuple[int, ...]]]:
    """Run ``model`` with only some of its layers inside the ``with`` block; yield their indices by stack.

    No weight is copied. The model in the block is the pruned model, cache indices and config included, so that what it
    computes and generates equals the pruned and reloaded one; afterwards all is as before, also after an error. Threads
    that enter such a block of one model do so in turns. A model that stays as it is is looked at once, so that from the
    second time on to enter and to leave takes a fraction of a millisecond: a loop may switch at every step.

    Raises:
        KeepLayersError: If ``keep_layers`` cannot be read or names layers that do not exist.
        LayerDropStateError: If ``model`` is a part of one in which LayerDrop is injected.
    """
    inner = model if isinstance(model, PreTrainedModel) else transformers_model(model)
    with turn_of_thread(inner):
        cutter = remembered(inner, Cutter)
        cutter.refuse_within_block()
        kept = cutter.parse(keep_layers)
        with cutter.sub_network(kept):
            yield kept


class Cutter:
    """Cut one model again and again: what has to change is looked up once."""

    def __init__(self, model: nn.Module) -> None:
        model = transformers_model(model)
        with turn_of_thread(model):  # or it would take another thread's sub-network for the whole model
            self._look_at(model)

    def _look_at(self, model: PreTrainedModel) -> None:
        own_config(model)  # what shares it must not seem to be cut
        states = [getattr(injected, STATE_ATTRIBUTE) for injected in injected_models(model).values()]
        self._reference = ref(model)  # not the model itself, with which what is remembered of it goes
        self._parts = [ref(part) for part in model.modules() if isinstance(part, PreTrainedModel)]
        self._draws = [draw for state in states for draw in state.draws.values()]
        self.refuse_within_block()
        self.stacks = find_stacks(model)
        check_free(model, self.stacks)
        self.depths = {name: stack.depth for name, stack in self.stacks.items()}
        self.lists = {name: stack.layers(model) for name, stack in self.stacks.items()}
        self._layers = {name: list(layers) for name, layers in self.lists.items()}
        self._numbered = {name: list(numbered_parts(layers)) for name, layers in self._layers.items()}
        # Nor their configs: what else holds one is searched for among all objects (own_config).
        self._configs = {name: [*map(ref, configs_of(model, stack))] for name, stack in self.stacks.items()}
        self._answers: dict[tuple[tuple[int, ...], ...], str | None] = {}  # why a cut is refused; None if it is not
        self._passed: set[tuple[int, ...]] = set()
        self._copies_nothing: set[tuple[bool, ...]] = set()
        self._copied: dict[tuple[tuple[int, ...], ...], Mapping[str, Any]] = {}
        self.last_refusal = ""

    @property
    def _model(self) -> PreTrainedModel:
        model = self._reference()
        assert model is not None
        return model

    def refuse_within_block(self) -> None:
        """Refuse a model that is a sub-network already, whose LayerDrop would be switched on at the wrong end.

        Raises:
            LayerDropStateError: If it is, and LayerDrop is injected.
        """
        if any(draw.paused for draw in self._draws):
            raise LayerDropStateError(
                "The model is a sub-network for the length of a with block; cut it after the block."
            )

    def resolve(self, keep_layers: KeepLayers) -> KeepLayers:
        """Return the measured set that is asked for, by the recommended sets of what the model was loaded from."""
        return resolve(keep_layers, self.depths, partial(recommended_of, self._model))

    def parse(self, keep_layers: KeepLayers) -> dict[str, tuple[int, ...]]:
        """Return the kept layers by stack; see `parse_keep_layers`."""
        return parse_keep_layers(self.resolve(keep_layers), self.depths)

    def check(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Refuse a cut that plain transformers would rebuild otherwise, and remember the answer.

        Where layers are alike, a cut that passes stands for all of the same stacks in which no layer lost its lender.

        Raises:
            UnsupportedModelError: If it would.
        """
        check_rescaled(self._model, self.stacks, kept)
        key, kind = tuple(map(tuple, kept.values())), self._kind(kept)
        if refusal := self._answers.get(key):
            raise UnsupportedModelError(refusal)
        if key in self._answers:
            return
        try:
            config = partial(cut_config, self._model.config, self.stacks, kept)
            if kind in self._passed and not self.layers_differ:
                check_lenders(self._rebuilds.whole, self.stacks, kept)
                check_taps(self._rebuilds.whole, self.stacks, kept)
                self._rebuilds.check_numbers(kept, config)
            else:
                self._rebuilds.check(kept, config())
        except UnsupportedModelError as error:
            remember(self._answers, key, str(error))
            raise
        remember(self._answers, key, None)
        self._passed.add(kind)

    def can_cut(self, kept: Mapping[str, Sequence[int]]) -> bool:
        """Tell whether `check` lets a cut pass; if not, ``last_refusal`` says why.

        That it is rebuilt does not say that it runs: transformers may fail in the forward of a hybrid model that has
        lost all its layers of one kind. Such an error comes from the forward, as any error of the inputs does.
        """
        try:
            self.check(kept)
        except UnsupportedModelError as error:
            self.last_refusal = str(error)
            return False
        return True

    @cached_property
    def layers_differ(self) -> bool:
        """Whether one cut may be rebuilt as it is and another of the same stacks not."""
        return may_differ(self._model, self.stacks)

    def _kind(self, kept: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Return what decides about a cut if layers are alike: which stacks it cuts; how far, if one field counts two.

        What the whole model is like says nothing about any cut.
        """
        fields = [(stack.config_path, stack.depth_field) for stack in self.stacks.values()]
        return tuple(
            len(kept[name]) if fields.count(field) > 1 else len(kept[name]) < self.depths[name]
            for name, field in zip(self.stacks, fields, strict=True)
        )

    @cached_property
    def _rebuilds(self) -> Rebuilds:
        return Rebuilds(built_on_meta(type(self._model), cut_config(self._model.config, {}, {})), self.stacks)

    def cut(self, kept: Mapping[str, Sequence[int]], changes: Changes) -> None:
        """Cut the model to the given layers, in place, by changes that can be undone."""
        self._renew_copies(kept, changes)  # first, while the config is that of the whole model
        for holder, values in [*tap_changes(self._model.config, self.stacks, kept)]:
            changes.assign(holder, values)
        for name, stack in self.stacks.items():
            if len(kept[name]) == stack.depth:
                continue
            for config in filter(None, (held() for held in self._configs[name])):
                changes.assign(config, _cut_fields(config, stack, kept[name]))
            changes.assign(self.lists[name], {compat.CHILDREN.name: self._modules(name, kept[name])})
            self._move_bias(name, stack, kept[name][0], changes)
            for place in self._numbered[name]:
                if place.layer in kept[name]:
                    changes.assign(place.part, {place.field: place.at(kept[name].index(place.layer))})

    def _renew_copies(self, kept: Mapping[str, Sequence[int]], changes: Changes) -> None:
        """Renew what the modules around the layers copied from the config when they were built, such as a depth."""
        cut = tuple(len(kept[name]) < self.depths[name] for name in self.stacks)
        if not any(cut) or cut in self._copies_nothing:
            return
        key = tuple(map(tuple, kept.values()))
        if (changed := self._copied.get(key)) is None:
            config = cut_config(self._model.config, self.stacks, kept)
            changed = self._rebuilds.changed_settings(config, partial(self.renamed, kept))
            remember(self._copied, key, changed)
        if not changed and not takes_by_number(self._model.config, self.stacks):
            self._copies_nothing.add(cut)
        for path, settings in changed.items():
            part = self._model.get_submodule(path)
            values = {name: new for name, (old, new) in settings.items() if vars(part).get(name) == old}
            changes.assign(part, values)

    def _move_bias(self, name: str, stack: Stack, first: int, changes: Changes) -> None:
        """Move what the first block owns for all to the first block that is kept."""
        bias = bias_in_first_block(stack.model_type)
        if bias is None or first == 0:
            return
        for path, owner in owners_of_bias(self._layers[name][0], bias):
            heir = self._layers[name][first].get_submodule(path)
            attributes = borrowed_attributes(owner, bias)
            flag = {field: value for field, value in attributes.items() if field == bias.flag}
            modules = {field: value for field, value in attributes.items() if field != bias.flag}
            children = compat.CHILDREN.name
            changes.assign(heir, {children: {**getattr(heir, children), **modules}, **flag})

    @contextmanager
    def sub_network(self, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """Be the sub-network inside the ``with`` block: it drops nothing, and saves as the pruned model."""
        with turn_of_thread(self._model), self._cut_down(kept):
            yield

    @contextmanager
    def _cut_down(self, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
        provenance = cut_provenance(saved_provenance(self._model.config), kept, self.depths)
        self.check(kept)
        changes = Changes()
        try:
            try:
                self._be(kept, provenance, changes)
                yield
            finally:
                self._leave(changes)
        finally:
            self._leave(changes)  # what an interrupt of that has left

    def _be(self, kept: Mapping[str, Sequence[int]], provenance: Mapping[str, Any], changes: Changes) -> None:
        parts = [part for reference in self._parts if (part := reference()) is not None]
        changes.note(partial(take_back_recording, parts, recording_models(parts)))
        open_block(self._model, changes)
        changes.assign(self._model.config, {CONFIG_KEY: provenance})
        for draw in self._draws:
            changes.assign(draw, {"paused": True})
        self.cut(kept, changes)
        if (generation := getattr(self._model, "generation_config", None)) is not None:
            changes.keep(generation)
            renumber_generation(generation, self.stacks, kept, quiet=True)
            settle_cache(self._model, self.stacks, quiet=True)

    def _leave(self, changes: Changes) -> None:
        """Undo what a block changed, after what blocks inside of it did that are still open."""
        while changes in (opened := opened_blocks(self._model)):
            opened[-1].undo()
            close_block(self._model, opened[-1])
        changes.undo()

    def renamed(self, kept: Mapping[str, Sequence[int]], module: str) -> str | None:
        """Return the name that a module has after a cut, None if it is cut away."""
        for name, stack in self.stacks.items():
            prefix = f"{stack.path}."
            if module.startswith(prefix):
                layer, _, part = module.removeprefix(prefix).partition(".")
                if int(layer) not in kept[name]:
                    return None
                return f"{prefix}{kept[name].index(int(layer))}{'.' * bool(part)}{part}"
        return module

    def _modules(self, name: str, kept: Sequence[int]) -> dict[str, nn.Module]:
        return {str(new): self._layers[name][old] for new, old in enumerate(kept)}


def pruned_config(config: PreTrainedConfig, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]) -> None:
    """Cut every field of a config that has one entry a layer, or counts them, along with its stacks; in place."""
    for holder, values in list(tap_changes(config, stacks, kept)):
        _assign(holder, values)
    for name, stack in stacks.items():
        part = stack.config(config)
        _assign(part, _cut_fields(part, stack, kept[name]))


def cut_config(
    config: PreTrainedConfig, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]
) -> PreTrainedConfig:
    """Return a copy of a config that is cut, and says nothing of LayerDrop."""
    config = copy.deepcopy(config)
    config.__dict__.pop(CONFIG_KEY, None)
    for part, quantization in list(_quantized(config, stacks, kept)):
        part.quantization_config = quantization
    pruned_config(config, stacks, kept)
    return config


def cut_provenance(
    saved: Mapping[str, Any], kept: Mapping[str, Sequence[int]], depths: Mapping[str, int], **entries: Any
) -> dict[str, Any]:
    """Return ``config.hf_layerdrop`` after a cut: indices here and in the root checkpoint, rates 0, history kept."""
    if any(len(layers) < depths[name] for name, layers in kept.items()):  # an earlier choice is not that of this cut
        saved = {name: value for name, value in saved.items() if name not in _OF_ONE_CUT}
    roots = root_layers(saved, depths)
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


def _quantized(
    config: PreTrainedConfig, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]
) -> Iterator[tuple[PreTrainedConfig, Any]]:
    """Yield the configs that say how a model is quantized, and what they say after a cut."""
    for part in {id(part): part for part in (config, config.get_text_config(decoder=True))}.values():
        if (quantization := getattr(part, "quantization_config", None)) is not None:
            yield part, renumber_quantization(quantization, stacks, kept)


def _cut_fields(config: PreTrainedConfig, stack: Stack, kept: Sequence[int]) -> dict[str, Any]:
    """Return the new values of the fields of one config: its depth, and what lists or numbers its layers."""
    if getattr(config, stack.depth_field, None) != stack.depth or len(kept) == stack.depth:
        return {}
    return {**cut_fields(vars(config), stack.depth, kept), stack.depth_field: len(kept)}


def _assign(target: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(target, name, value)
