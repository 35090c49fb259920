"""What a checkpoint's config says of LayerDrop: ``config.hf_layerdrop``, read where anybody needs it, and checked.

Anyone can write a config.json. What stands there under our name is acted on, shown in cards and written into what is
cut from the checkpoint, so that an entry of another form is refused with the next step, and never half believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictFloat, ValidationError
from pydantic_core import PydanticCustomError

from hf_layerdrop.errors import CheckpointError

CONFIG_KEY = "hf_layerdrop"


def _in_order(kept: list[int]) -> list[int]:
    if kept != sorted(set(kept)):
        raise PydanticCustomError("layers", "Input should be layer indices in order, each once")
    return kept


Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Index = Annotated[int, Field(strict=True, ge=0)]
Shares = dict[str, list[Share]]  # one a layer, by stack
Layers = dict[str, Annotated[list[Index], AfterValidator(_in_order)]]


class _Training(BaseModel):
    """The settings of a `LayerDropConfig` that cards show; it checks the rest itself."""

    rate: Share | list[Share] | dict[str, Share | list[Share]] = 0.0
    shape: str = ""
    sampler: str = ""
    structure: str | list[str] = ""
    granularity: str = "batch"
    nested: StrictBool = False
    scale: str = "none"
    schedule: str | None = None


class _Measured(BaseModel):
    """The name of a data set, its config and its splits."""

    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    more_splits: dict[str, str] | None = None


class _Provenance(BaseModel):
    """All that is read of ``config.hf_layerdrop``; entries of a later version are left alone."""

    rates: Shares | None = None
    learned_rates: Shares | None = None
    learned_shares: Shares | None = None
    keep_layers: Layers | None = None
    root_keep_layers: Layers | None = None
    keep_heads: dict[str, list[list[Index]]] | None = None
    trained_with: _Training | None = None
    distilled_with: dict[str, StrictFloat] | None = None
    healed_with: list[str] | None = None
    measured_on: _Measured | None = None
    seed: Index | None = None
    sampler_version: Index | None = None
    source: str | None = None
    revision: str | None = None
    strategy: str | None = None
    metric: str | None = None
    score: StrictFloat | None = None
    use_cache_before: StrictBool | None = None


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
    try:
        _Provenance.model_validate(saved)
    except ValidationError as error:
        first = error.errors()[0]
        name, wanted = first["loc"][0], first["msg"].removeprefix("Input ").partition(" or instance of")[0]
        _refuse(f"has {name} = {_short(saved[name])}, where {_short(first['input'])} {wanted}", error)
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


def _refuse(what: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(
        f"The entry {CONFIG_KEY!r} of the checkpoint's config {what}: delete this entry from config.json, or load "
        "the model with layerdrop=, which replaces it, and save it again."
    ) from cause


def _short(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
