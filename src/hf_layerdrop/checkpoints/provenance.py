"""What a checkpoint's config says of LayerDrop: ``config.hf_layerdrop``, read where anybody needs it, and checked.

Anyone can write a config.json. What stands there under our name is acted on, shown in cards and written into what is
cut from the checkpoint, so that an entry of another form is refused with the next step, and never half believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from hf_layerdrop.errors import CheckpointError

CONFIG_KEY = "hf_layerdrop"


def saved_provenance(config: Any) -> dict[str, Any]:
    """Return what a config, or the dict of one, says of LayerDrop; an empty dict if it says nothing.

    It is the config's own dict, so that what is changed in it is saved with the model.

    Raises:
        CheckpointError: If it is not what this package writes.
    """
    saved = config.get(CONFIG_KEY) if isinstance(config, Mapping) else getattr(config, CONFIG_KEY, None)
    if saved is None:
        return {}
    if not isinstance(saved, dict):
        _refuse(f"is {_short(saved)} and not a dict")
    for name, value in saved.items():
        wanted, fits = _FORMS.get(name, ("", _anything))
        if value is not None and not fits(value):
            _refuse(f"has {name} = {_short(value)}, which is not {wanted}")
    return saved


def own_provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the dict of a config says of LayerDrop, for who only shows it: what we did not write is left out."""
    try:
        return saved_provenance(config)
    except CheckpointError:
        return {}


def root_layers(saved: Mapping[str, Any], depths: Mapping[str, int]) -> dict[str, list[int]]:
    """Return which layers of the root checkpoint a model has, by stack; its own numbers where nothing is said.

    Raises:
        CheckpointError: If there are more or fewer of them than layers.
    """
    roots = saved.get("root_keep_layers") or {}
    for stack, depth in depths.items():
        if stack in roots and len(roots[stack]) != depth:
            _refuse(f"names {len(roots[stack])} layers of the {stack} in root_keep_layers, but the model has {depth}")
    return {stack: list(roots.get(stack, range(depth))) for stack, depth in depths.items()}


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(
        f"The entry {CONFIG_KEY!r} of the checkpoint's config {what}: delete this entry from config.json, or load "
        "the model with layerdrop=, which replaces it, and save it again."
    )


def _short(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def _anything(_value: Any) -> bool:
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_list(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))

    return is_list


def _map_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_map(value: Any) -> bool:
        return isinstance(value, Mapping) and all(map(_text, value)) and all(map(fits, value.values()))

    return is_map


def _layers(value: Any) -> bool:
    """Tell layer indices by stack: of a stack each at most once, in order."""
    return _map_of(_list_of(_index))(value) and all(list(kept) == sorted(set(kept)) for kept in value.values())


def _training(value: Any) -> bool:
    """Tell settings of a `LayerDropConfig` by the form of those that cards show; it checks the rest itself."""
    rate = value.get("rate", 0.0) if isinstance(value, Mapping) else None
    of_a_stack = (_share, _list_of(_share))
    rates = rate.values() if isinstance(rate, Mapping) else [rate]
    names = (_text, _list_of(_text))
    return (
        _map_of(_anything)(value)
        and all(any(fits(rate) for fits in of_a_stack) for rate in rates)
        and all(any(fits(value.get(field, "")) for fits in names) for field in ("shape", "sampler", "structure"))
    )


def _measured(value: Any) -> bool:
    return (
        _map_of(_anything)(value)
        and all(value.get(name) is None or _text(value[name]) for name in ("dataset", "config", "split"))
        and _map_of(_text)(value.get("more_splits") or {})
    )


# What each entry looks like, in words and as a check; of an entry that is not listed, nothing is read.
_FORMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "rates": ("one number from 0 to 1 a layer, by stack", _map_of(_list_of(_share))),
    "learned_rates": ("one number from 0 to 1 a layer, by stack", _map_of(_list_of(_share))),
    "learned_shares": ("one number from 0 to 1 a layer, by stack", _map_of(_list_of(_share))),
    "keep_layers": ("layer indices in order, by stack", _layers),
    "root_keep_layers": ("layer indices in order, by stack", _layers),
    "keep_heads": ("head indices a layer, by stack", _map_of(_list_of(_list_of(_index)))),
    "trained_with": ("the settings of a LayerDropConfig", _training),
    "distilled_with": ("numbers by name", _map_of(_number)),
    "measured_on": ("the name of a data set, its config and its splits", _measured),
    "sampler_version": ("a whole number, 0 or more", _index),
    "seed": ("a whole number, 0 or more", _index),
    "source": ("a name", _text),
    "revision": ("a name", _text),
    "strategy": ("a name", _text),
    "metric": ("a name", _text),
    "score": ("a number", _number),
    "use_cache_before": ("true or false", _truth),
}
