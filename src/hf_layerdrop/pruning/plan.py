"""What ``keep_layers`` means for one checkpoint, found out before any weight is read.

The model is built twice on the meta device for it, whole and cut. That takes tens of milliseconds, a good part of what
it takes to load a small checkpoint that is in memory already: the latest models are remembered, and which cuts pass is
remembered on disk.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.architectures.expressible import Rebuilds, built_on_meta, warn_of_untried
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.weight_names import WeightNames, keep_weights
from hf_layerdrop.pruning.prune import cut_config
from hf_layerdrop.pruning.remembered_cuts import digest_of, is_known, note
from hf_layerdrop.samplers.keep_layers import KeepLayers, choice_behind, parse_keep_layers, resolve

_REMEMBERED = 4  # models; without weights each takes a few megabytes


@dataclass(frozen=True)
class Cut:
    """What ``keep_layers`` means for one checkpoint, loaded as one class.

    Attributes:
        cls: The transformers class.
        config: The config of the whole model.
        names: The stacks of the whole model, and which weights belong to them.
        kept: The kept layers of each.
        provenance: Entries for ``config.hf_layerdrop``.
    """

    cls: type[PreTrainedModel]
    config: PreTrainedConfig
    names: WeightNames
    kept: Mapping[str, tuple[int, ...]]
    provenance: Mapping[str, Any]

    def choose(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return the kept ones of the weights, or of what else goes by their names, under their new names."""
        return dict(keep_weights(weights, self.names, self.kept))

    def place_of(self, weight: str) -> tuple[str, int, str] | None:
        """Return the stack of a weight of the cut model, its layer in the whole one, and its name in the layer."""
        place = self.names.layer_of(weight)
        return place and (place[0], self.kept[place[0]][place[1]], place[2])

    def name_in_whole(self, weight: str) -> str:
        """Return the name that a weight of the cut model has in the whole one, which is that in the checkpoint."""
        new, old = self.names.layer_of(weight), self.place_of(weight)
        return self.names.renumbered(weight, new[0], new[1], old[1]) if new and old else weight

    def kept_by_path(self) -> dict[str, tuple[int, ...]]:
        """Return the kept layers by the path of their stack in the base model."""
        prefix = self.cls.base_model_prefix + "."
        return {stack.path.removeprefix(prefix): self.kept[name] for name, stack in self.names.stacks.items()}


def plan_cut(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    keep_layers: KeepLayers,
    *,
    recommended: Callable[[], RecommendedSets] | None = None,
    on_chosen: Callable[[Cut], None] | None = None,
    **provenance: Any,
) -> Cut:
    """Find out which layers of the model that a config builds are kept; ``provenance`` is written into the config.

    What may be done while the cut is checked, ``on_chosen`` begins. ``recommended`` reads the checkpoint's recommended
    sets, if ``keep_layers`` asks for them.

    Raises:
        KeepLayersError: If ``keep_layers`` does not fit the model.
        UnsupportedModelError: If the model's layers cannot be taken out.
    """
    whole = _look_at(cls, config)
    depths = {name: stack.depth for name, stack in whole.names.stacks.items()}
    keep_layers = resolve(keep_layers, depths, recommended)
    kept = parse_keep_layers(keep_layers, depths)
    cut = Cut(cls, config, whole.names, kept, {**choice_behind(keep_layers), **provenance})
    if on_chosen is not None:
        on_chosen(cut)
    whole.check(kept)
    return cut


class _Whole:
    """A model without weights, and which cuts of it are known to be rebuilt by plain transformers as they are."""

    def __init__(self, cls: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        model = built_on_meta(cls, config)
        self._model, self._config = model, model.config
        self.names = WeightNames(model, find_stacks(model))
        self._checked: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

    def check(self, kept: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what plain transformers would rebuild otherwise."""
        key = tuple(kept.items())
        if key in self._checked:
            return
        digest = digest_of(self._model, self._config, kept)
        if digest is not None and is_known(digest):
            warn_of_untried(self._config)
        elif self._rebuilds.check(kept, cut_config(self._config, self.names.stacks, kept)) and digest is not None:
            note(digest)
        self._checked.add(key)

    @cached_property
    def _rebuilds(self) -> Rebuilds:
        return Rebuilds(self._model, self.names.stacks)


_looked_at: dict[tuple[type[PreTrainedModel], bytes], _Whole] = {}  # the latest last


def _look_at(cls: type[PreTrainedModel], config: PreTrainedConfig) -> _Whole:
    """Look at a model, or remember it: what is built depends on the class and on what its config holds, alone."""
    try:
        key = cls, pickle.dumps(config)
    except Exception:  # something in the config cannot be pickled, so nothing tells it from another
        return _Whole(cls, config)
    whole = _looked_at.pop(key, None) or _Whole(cls, config)
    _looked_at[key] = whole
    while len(_looked_at) > _REMEMBERED:
        _looked_at.pop(next(iter(_looked_at)), None)
    return whole


def forget() -> None:
    """Forget all models, as a new process would know none."""
    _looked_at.clear()
