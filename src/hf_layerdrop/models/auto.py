"""The model classes of the package: the named LayerDrop classes, and Auto classes for every architecture."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import BUILDING
from hf_layerdrop.checkpoints.class_by_weights import class_by_weights
from hf_layerdrop.checkpoints.model_class import find_class, find_config
from hf_layerdrop.checkpoints.own_code import class_of_code, needs_own_code
from hf_layerdrop.compat import build_from_config
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError
from hf_layerdrop.models.mixin import inject, plain_class
from hf_layerdrop.models.named import *  # noqa: F403
from hf_layerdrop.models.named import NAMED
from hf_layerdrop.pruning.loading import load_noting, load_plain
from hf_layerdrop.samplers.config import LayerDrop
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import GenerationMixin
    from typing_extensions import Unpack

    from hf_layerdrop.models.arguments import FromConfig, FromPretrained

    class GeneratingModel(PreTrainedModel, GenerationMixin):
        """What every language model of transformers is, under a name that a signature can say."""


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)


class AutoLayerDrop(Generic[Model]):
    """Choose the class by the checkpoint: its LayerDrop class, or else the transformers class, injected."""

    auto_class: ClassVar[type[Any]]  # of transformers, for the same task

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.auto_class = getattr(transformers, cls.__name__.replace("LayerDrop", "", 1))

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not instantiated; call its from_pretrained or from_config.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        layerdrop: LayerDrop | None = None,
        keep_layers: KeepLayers = None,
        **kwargs: Unpack[FromPretrained],
    ) -> Model:
        """Load a checkpoint of any architecture; see `LayerDropMixin.from_pretrained` for the arguments and errors."""
        source = pretrained_model_name_or_path
        config = find_config(source, kwargs)
        own = class_of_code(config, (cls.auto_class.__name__,), source, kwargs)
        plain = own or cls.class_for(config, source)
        kwargs.pop("code_revision", None)  # which the Auto classes alone take
        if plain in NAMED:
            return NAMED[plain].from_pretrained(
                pretrained_model_name_or_path, *args, layerdrop=layerdrop, keep_layers=keep_layers, **kwargs
            )
        loaded = load_plain(plain, source, *args, keep_layers=keep_layers, **kwargs)
        inject(loaded[0] if isinstance(loaded, tuple) else loaded, layerdrop, kwargs)
        return loaded

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, *, layerdrop: LayerDrop | None = None, **kwargs: Unpack[FromConfig]
    ) -> Model:
        """Build a model with random weights from a config; ``kwargs`` are those of the transformers class's."""
        code: dict[str, Any] = {
            name: kwargs.pop(name) for name in ("trust_remote_code", "code_revision") if name in kwargs
        }
        plain = class_of_code(config, (cls.auto_class.__name__,), config.name_or_path, code)
        plain = plain or cls.class_for(config, config.name_or_path or "the config")
        own = copy.deepcopy(config)  # injection notes rates in it
        with BUILDING:
            model = build_from_config(NAMED.get(plain, plain), own, **kwargs)
        if layerdrop is not None or plain not in NAMED:
            inject(model, layerdrop)
        return model

    @classmethod
    def class_for(cls, config: PreTrainedConfig, source: object) -> type[PreTrainedModel]:
        """Return the transformers class for a config; ``source`` is how an error names it.

        Raises:
            CheckpointError: If it is one of the checkpoint's own, whose code may not be run.
            UnsupportedModelError: If transformers has none for this task.
        """
        mapping = getattr(cls.auto_class, compat.CLASSES_BY_CONFIG.name)
        if type(config) not in mapping and cls.auto_class.__name__ in (getattr(config, "auto_map", None) or {}):
            raise CheckpointError(needs_own_code(source))
        if type(config) not in mapping:
            raise UnsupportedModelError(
                f"{str(source)!r} is of model type {config.model_type!r}, for which transformers has no "
                f"{cls.auto_class.__name__}; choose the Auto class of another task."
            )
        return plain_class(compat.CLASS_BY_CONFIG.value(config, mapping))


class AutoLayerDropModel(AutoLayerDrop[PreTrainedModel]):
    """`AutoModel` with LayerDrop."""


class AutoLayerDropModelForSequenceClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForSequenceClassification` with LayerDrop."""


class AutoLayerDropModelForTokenClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTokenClassification` with LayerDrop."""


class AutoLayerDropModelForQuestionAnswering(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForQuestionAnswering` with LayerDrop."""


class AutoLayerDropModelForMultipleChoice(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForMultipleChoice` with LayerDrop."""


class AutoLayerDropModelForMaskedLM(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForMaskedLM` with LayerDrop."""


class AutoLayerDropModelForCausalLM(AutoLayerDrop["GeneratingModel"]):
    """`AutoModelForCausalLM` with LayerDrop."""


class AutoLayerDropModelForSeq2SeqLM(AutoLayerDrop["GeneratingModel"]):
    """`AutoModelForSeq2SeqLM` with LayerDrop."""


def load_checkpoint(
    name_or_path: str | os.PathLike[str],
    *,
    keep_layers: KeepLayers = None,
    layerdrop: LayerDrop | None = None,
    model_class: type | str | None = None,
    **kwargs: Unpack[FromPretrained],
) -> PreTrainedModel:
    """Load a checkpoint as the transformers class that it is of, whole or ``keep_layers`` of it alone.

    That is the class that its config names, if all weights of the class are there, else the one whose are.
    ``model_class`` says it where both do not. LayerDrop is injected only if ``layerdrop`` is given: this is the loader
    of whoever prunes, measures or serves.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or names no class that transformers has.
        LayerDropConfigError: If a rate is given twice.
        UnsupportedModelError: If ``model_class`` is no class, or the model's layers cannot be taken out.
    """
    model, info = load_fitting(name_or_path, keep_layers, model_class, None, kwargs)
    if layerdrop is not None:
        inject(model, layerdrop, kwargs)
    return (model, info) if kwargs.get("output_loading_info") else model


def load_fitting(
    name_or_path: str | os.PathLike[str],
    keep_layers: KeepLayers,
    model_class: type | str | None,
    leftovers: dict[str, Any] | None,
    kwargs: Mapping[str, Any],
) -> tuple[Any, Mapping[str, Any]]:
    """Load a checkpoint as `load_checkpoint` does; see `load_noting` for ``leftovers`` and what is returned."""
    given = {name: value for name, value in kwargs.items() if name != "code_revision"}
    cls = find_class(name_or_path, kwargs) if model_class is None else _chosen(model_class, name_or_path, kwargs)
    model, info = load_noting(cls, name_or_path, keep_layers=keep_layers, leftovers=leftovers, **given)
    if model_class is None and info["missing_keys"] and kwargs.get("state_dict") is None:
        fitting = _fitting_class(model, info)
        if fitting is not cls:
            logger.warning(
                "%s is loaded as %s: it has not all weights of %s.", name_or_path, fitting.__name__, cls.__name__
            )
            (leftovers if leftovers is not None else {}).clear()
            return load_noting(fitting, name_or_path, keep_layers=keep_layers, leftovers=leftovers, **given)
    return model, info


def _chosen(model_class: Any, name_or_path: Any, kwargs: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Return the transformers class that a caller chose: by itself or one of ours, by an Auto class, or by its name.

    Raises:
        UnsupportedModelError: If it is none.
    """
    found = getattr(transformers, model_class, None) if isinstance(model_class, str) else model_class
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return plain_class(found)
    auto = getattr(found, "__name__", "").replace("AutoModel", "AutoLayerDropModel")
    if isinstance(found, type) and not issubclass(found, AutoLayerDrop):
        found = next((cls for cls in AutoLayerDrop.__subclasses__() if cls.__name__ == auto), None)
    if isinstance(found, type) and issubclass(found, AutoLayerDrop):
        return found.class_for(find_config(name_or_path, kwargs), name_or_path)
    raise UnsupportedModelError(
        f"model_class is {model_class!r}; give a model class of transformers or of this package, such as "
        "BertForMaskedLM, AutoModelForMaskedLM or its name."
    )


def _fitting_class(model: PreTrainedModel, info: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Return the class whose weights a checkpoint has, by what transformers says of loading it as another one."""
    missing = set(info["missing_keys"])
    held: dict[str, Any] = {name: weight for name, weight in model.state_dict().items() if name not in missing}
    held |= dict.fromkeys(info["unexpected_keys"], SimpleNamespace(shape=None))
    return class_by_weights(model.config, held, type(model))
