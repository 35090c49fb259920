"""What the LayerDrop subclasses of transformers' models add: arguments of ``from_pretrained``, plain checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.architectures.families import NATIVE_RATE
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, saved_provenance
from hf_layerdrop.errors import CheckpointError, LayerDropConfigError
from hf_layerdrop.injection.inject import inject_layerdrop, write_down
from hf_layerdrop.injection.injected import states_of
from hf_layerdrop.injection.native import native_rates
from hf_layerdrop.pruning.loading import load_plain
from hf_layerdrop.samplers.config import LayerDrop, LayerDropConfig
from hf_layerdrop.samplers.depth_list import as_depth_list, of_these_stacks
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from hf_layerdrop.models.arguments import FromPretrained

logger = logging.getLogger(__name__)


class LayerDropMixin:
    """Put in front of a transformers class: drop layers while training, save as the transformers class.

    ``layerdrop`` takes a rate, a `LayerDropConfig` or its dict. Left out, the rates that the checkpoint was saved with
    are used, else those of the model's own LayerDrop (BART's ``encoder_layerdrop``), else 0.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, layerdrop: LayerDrop | None = None, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        inject(self, layerdrop)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        layerdrop: LayerDrop | None = None,
        keep_layers: KeepLayers = None,
        **kwargs: Unpack[FromPretrained],
    ) -> Self:
        """Load a checkpoint, whole or ``keep_layers`` of it alone, ready to be trained with LayerDrop.

        All other arguments are those of transformers' ``from_pretrained``; a type checker knows the fields of configs
        among them that are usually set here, and the rest can be set in a ``config``. The weights of layers that are
        not kept are not read.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged, or of another architecture.
            KeepLayersError: If ``keep_layers`` does not fit the checkpoint.
            LayerDropConfigError: If ``layerdrop`` does not fit the model.
        """
        settings = LayerDropConfig.of(layerdrop) if layerdrop is not None else None
        loaded = load_plain(plain_class(cls), pretrained_model_name_or_path, *args, keep_layers=keep_layers, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loaded as the transformers class, whose checkpoint conversions a class from elsewhere would not get; see
        # loading.py.
        model.__class__ = cls
        compat.RECORDED_BY_CLASS.value[model] = getattr(model, compat.CAN_RECORD.name)
        inject(model, settings, kwargs)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save a plain checkpoint, as the transformers class would: its name stands in the config."""
        own = type(self)
        # save_pretrained writes the name of the class it is called on, and uploads before it returns.
        self.__class__ = _named_as(own, plain_class(own))
        try:
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.__class__ = own

    @classmethod
    def is_custom_code(cls) -> bool:
        """Answer as the transformers class does: the modeling code is transformers' own, so its conversions apply."""
        return plain_class(cls).is_custom_code()


def plain_class(cls: type) -> type[PreTrainedModel]:
    """Return the transformers class that a class is, or is made from."""
    return next(
        base for base in cls.__mro__ if not issubclass(base, LayerDropMixin) and issubclass(base, PreTrainedModel)
    )


# As the transformers class: by this name Trainer knows whose labels it has to shift.
compat.CLASS_NAME.replace(LayerDropMixin, lambda self: plain_class(type(self)).__name__)


def inject(model: PreTrainedModel, layerdrop: LayerDrop | None, given: Mapping[str, Any] | None = None) -> None:
    """Inject what was asked for, else what the checkpoint was saved with, else the model's own rates, in place.

    Raises:
        LayerDropConfigError: If one of the model's own rates is ``given`` where another one goes before it.
    """
    own = {name: rate for name, rate in (given or {}).items() if NATIVE_RATE.fullmatch(name) and rate is not None}
    saved = saved_provenance(model.config) if layerdrop is None else {}  # which it replaces, whatever stands there
    drops = any(map(any, saved.get("rates", {}).values()))
    # A rate of 0 is obeyed where none is saved, and says beside layerdrop= what is so anyway.
    if (any(own.values()) and (layerdrop is not None or "rates" in saved)) or (own and drops):
        name, rate = next(iter(own.items()))
        first = "layerdrop= was given" if layerdrop is not None else "the checkpoint was saved with rates of its own"
        raise LayerDropConfigError(
            f"{name}={rate} would not be obeyed, since {first}: give all rates by layerdrop=, such as "
            'layerdrop={"encoder": 0.2}.'
        )
    if layerdrop is not None:
        inject_layerdrop(model, layerdrop)
        return
    if "rates" not in saved:
        inject_layerdrop(model, LayerDropConfig(native_rates(model)))
        return
    config = _saved_config(saved, depths_of(model))
    inject_layerdrop(model, config)
    if config.mean_rate:
        _say_that_it_drops()
    if saved.get("trained_with"):  # what was begun with an old version goes on with it
        for state in states_of(model).values():
            state.use_sampler_version(saved.get("sampler_version", 1))
        write_down(model)


@cache
def _say_that_it_drops() -> None:
    """Tell once a process that a checkpoint's rates go on, which nobody has asked for in this call."""
    logger.warning(
        "This checkpoint was trained with LayerDrop: whoever trains it on drops layers again, at the rates in its "
        "config. Give layerdrop=0 to drop none, or a rate of your own."
    )


def _saved_config(saved: Mapping[str, Any], depths: Mapping[str, int]) -> LayerDropConfig:
    """Return the config with which a checkpoint's active rates go on, for the stacks that the model has of it.

    Raises:
        CheckpointError: If what the config says of LayerDrop is not what this package writes.
    """
    trained_with = saved.get("trained_with") or {}
    try:
        rates: Any = {stack: saved["rates"].get(stack, [0.0] * depth) for stack, depth in depths.items()}
        if not any(any(values) for values in rates.values()):
            return LayerDropConfig(0.0)
        if trained_with.get("sampler") == "depth":
            rates = {stack: max(values) for stack, values in rates.items()}
        kept = trained_with.get("never_drop", ())
        if isinstance(kept, Mapping):
            kept = {stack: layers for stack, layers in kept.items() if stack in depths}
        if (listed := as_depth_list(trained_with.get("depths"))) is not None:
            trained_with = {**trained_with, "depths": of_these_stacks(listed, depths)}
            rates = 0.0  # they follow from the list
        config = LayerDropConfig.from_dict({**trained_with, "rate": rates, "shape": "uniform", "never_drop": kept})
        config.rates_for(depths)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The entry {CONFIG_KEY!r} of the checkpoint's config does not fit the model ({error}); "
            "give layerdrop= to say what is dropped."
        ) from error
    return config


_TWINS: dict[type, type] = {}


def _named_as(cls: type, plain: type) -> type:
    """Return a subclass of ``cls`` that differs from it in its name alone."""
    if cls not in _TWINS:
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        _TWINS[cls] = type(plain.__name__, (cls,), names)
    return _TWINS[cls]
