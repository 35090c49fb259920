"""PEFT adapters in a model that is cut: their weights move with the layers, their configs have to be told.

An adapter's config says by patterns which modules it adapts, and with which ranks. Where these speak of layer numbers
(``layers_to_transform``, ``layer.3.attention``, a rank of its own for one layer), the same numbers mean other layers
after a cut. PEFT's own matching decides here what a pattern means, and whether it still means the same.

PEFT is imported where an adapter was found: it is not a dependency of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.errors import KeepLayersError, UnsupportedModelError

Rename = Callable[[str], str | None]

_NUMBERED = re.compile(r"(^|\.)\d+\.")

# Fields that only such configs have, or set, whose weights are not filed under the layers that they belong to.
_NOT_IN_LAYERS = {
    "prefix_projection": "a prefix holds keys and values for all layers in one table",
    "adapter_layers": "it counts its layers from the last one",
    "layer_replication": "it repeats layers",
    "total_step": "its ranks are allocated over all layers",
}


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that cannot be cut by layers; a PeftModel has to be given as such, it alone knows its prefixes.

    Raises:
        UnsupportedModelError: If there is one.
    """
    for name, config in _configs(model).items():
        reasons = [why for field, why in _NOT_IN_LAYERS.items() if getattr(config, field, None) is not None]
        reasons += [f"it names {word!r}, a part of one layer" for word in _words(config) if _NUMBERED.search(word)]
        if reasons:
            raise UnsupportedModelError(
                f"The adapter {name!r} cannot be cut by layers: {reasons[0]}; cut the model first, then train it."
            )


def cut_adapters(model: nn.Module, rename: Rename, keep_layers: str) -> list[tuple[Any, dict[str, Any]]]:
    """Return the config of each adapter in ``model`` with the fields that a cut changes; nothing is changed yet.

    Args:
        model: The transformers model in which the adapters are, before the cut.
        rename: Returns the name that a module has after the cut, None if it is cut away.
        keep_layers: The cut in words, by which the adapter then names its base model. On the whole one, which no
            longer loads by that name, the adapter would without a word meet other layers than its own.

    Raises:
        KeepLayersError: If an adapter would be left without a layer.
    """
    cut = [(config, _cut(model, name, config, rename)) for name, config in _configs(model).items()]
    for config, fields in cut:
        if base := config.base_model_name_or_path:
            fields["base_model_name_or_path"] = f"{base} cut to {keep_layers}"
    return cut


def _words(config: Any) -> list[str]:
    """Return the names of modules and parameters in fields that are not patterns of adapted modules."""
    fields = (getattr(config, field, None) or () for field in ("modules_to_save", "target_parameters"))
    return [word for words in fields for word in words]


def _configs(model: nn.Module) -> Mapping[str, Any]:
    return getattr(model, "peft_config", None) or {}


def _cut(model: nn.Module, name: str, config: Any, rename: Rename) -> dict[str, Any]:
    adapted = {path for path, adapters in _adapted(model) if name in adapters}
    kept = {path: new for path in adapted if (new := rename(path)) is not None}
    if adapted and not kept:
        raise KeepLayersError(
            f"keep_layers leaves no layer that the adapter {name!r} adapts; keep one of them, or delete the adapter."
        )
    fields = {
        field: numbers
        for field, value in vars(config).items()
        if field.endswith("_pattern") and isinstance(value, dict) and (numbers := _cut_numbers(value, kept)) != value
    }
    if getattr(config, "target_modules", None):
        fields |= _cut_targets(config, set(kept.values()), [new for path in _names(model) if (new := rename(path))])
    return fields


def _adapted(model: nn.Module) -> Iterator[tuple[str, Collection[str]]]:
    """Yield the modules that adapters were put around, with the names of the adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, getattr(module, compat.ADAPTERS.name)()


def _names(model: nn.Module) -> list[str]:
    """Return the names of the modules that the model has without its adapters, among which PEFT looks for targets."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    own = tuple(
        f"{path}."
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    )
    return [path for path, _ in model.named_modules() if path and not path.startswith(own)]


def _cut_targets(config: Any, wanted: Collection[str], names: Collection[str]) -> dict[str, Any]:
    """Return the fields by which PEFT finds the modules that are ``wanted``, and no other ones, among ``names``."""
    from peft.tuners.tuners_utils import check_target_module_exists

    numbered = getattr(config, "layers_to_transform", None) not in (None, [])
    if not numbered and {name for name in names if check_target_module_exists(config, name)} == set(wanted):
        return {}
    others = ("layers_to_transform", "layers_pattern", "exclude_modules")
    return {"target_modules": set(wanted), **{field: None for field in others if hasattr(config, field)}}


def _cut_numbers(numbers: Mapping[str, Any], kept: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the numbers by pattern, such as ranks, that give each kept module the number that it had."""
    from peft.utils.other import get_pattern_key

    before = {new: numbers.get(get_pattern_key(numbers, old)) for old, new in kept.items()}
    if before == {new: numbers.get(get_pattern_key(numbers, new)) for new in kept.values()}:
        return numbers
    return {re.escape(name): number for name, number in before.items() if number is not None}
