"""Load some layers of a checkpoint: ``keep_layers`` at ``from_pretrained``, all other arguments untouched.

The kept layers are chosen and renumbered between the checkpoint and transformers' own loader. Everything that the
loader does (legacy names, tied weights, dtype, device map, quantization) therefore happens as for a checkpoint that
had these layers alone. Transformers' ``key_mapping`` is not used: it applies its patterns one after another, so that a
renumbered layer can match again, and ``save_pretrained`` reverses it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import resolve_revision

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import BUILDING, built_on_meta
from hf_layerdrop.architectures.families import NATIVE_RATE, refusal
from hf_layerdrop.architectures.layer_numbers import names_layers, renumber_generation, renumber_quantization
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.checkpoints.adapter_files import adapted_base
from hf_layerdrop.checkpoints.declared_depths import DEPTHS, check_depths
from hf_layerdrop.checkpoints.downloads import HubModel, fetch_kept
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, check_metadata, read_checkpoint, read_config
from hf_layerdrop.checkpoints.model_class import WHERE, check_architecture, check_declared, where_of
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import table_beside
from hf_layerdrop.checkpoints.strangers import out_of_memory, reason_of
from hf_layerdrop.checkpoints.unreadable import is_there, reading
from hf_layerdrop.checkpoints.weight_names import WeightNames, check_layers
from hf_layerdrop.checkpoints.weight_slices import read_ahead
from hf_layerdrop.errors import (
    CheckpointError,
    KeepLayersError,
    LayerDropConfigError,
    LayerDropError,
    UnsupportedModelError,
)
from hf_layerdrop.injection.native import switch_off_native
from hf_layerdrop.pruning.generation_cache import settle_cache
from hf_layerdrop.pruning.plan import Cut, plan_cut
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.pruning.readers import loader_class, reader_class
from hf_layerdrop.pruning.weight_checks import check_layers_are_whole
from hf_layerdrop.samplers.keep_layers import KeepLayers, resolve

# Arguments with which transformers looks for other files than model.safetensors or its shards, or for more of them.
_FILES_OF_THEIR_OWN = {"variant", "gguf_file", "state_dict", "adapter_kwargs", "proxies", "trust_remote_code"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_plain(
    cls: type[PreTrainedModel], name_or_path: Any, *args: Any, keep_layers: KeepLayers | None = None, **kwargs: Any
) -> Any:
    """Load a model of a transformers class through its own ``from_pretrained``, whole or with ``keep_layers`` alone.

    Only safetensors are read, unless ``use_safetensors=False`` asks for a pickle checkpoint.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of another architecture.
        KeepLayersError: If ``keep_layers`` does not fit the checkpoint.
        LayerDropConfigError: If a rate of the model's own LayerDrop is given with ``keep_layers``.
        UnsupportedModelError: If the model's layers cannot be taken out.
    """
    model, info = load_noting(cls, name_or_path, *args, keep_layers=keep_layers, **kwargs)
    return (model, info) if kwargs.get("output_loading_info") else model


def load_noting(
    cls: type[PreTrainedModel],
    name_or_path: Any,
    *args: Any,
    keep_layers: KeepLayers | None = None,
    leftovers: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Mapping[str, Any]]:
    """Load a model as `load_plain` does; return it with what transformers says of loading it.

    Args:
        cls: The transformers class.
        name_or_path: The checkpoint.
        *args: Passed to ``from_pretrained``.
        keep_layers: The layers to keep.
        leftovers: Is given the weights that the checkpoint has outside of layers that are cut away, and the class not.
        **kwargs: Passed to ``from_pretrained``.
    """
    if keep_layers is not None:
        _check_native(kwargs)
    kwargs["output_loading_info"] = True
    headers = check_source(cls, name_or_path, kwargs)
    if name_or_path is not None:
        kwargs.setdefault("use_safetensors", True)
    by_number = bool(kwargs.get("gguf_file")) or adapted_base(name_or_path, kwargs) is not None
    cut = None
    with BUILDING, _reading(cls, name_or_path, args, kwargs):
        # Transformers puts an adapter into a model by layer numbers, which are those of the whole model; and its
        # reader of GGUF makes the names of weights while it reads them. Both are cut in memory.
        if keep_layers is None or by_number:
            reader = cls if leftovers is None or by_number else reader_class(cls, leftovers)
            model, info = reader.from_pretrained(name_or_path, *args, **_of_classes(kwargs))
            model.__class__ = cls
        else:
            cut = _plan(cls, name_or_path, keep_layers, kwargs, headers)
            model, info = _load_cut(cut, name_or_path, args, kwargs, leftovers)
    # What follows is our own doing: what goes wrong there is no fault of the files.
    if cut is not None:
        if kwargs.get("state_dict") is None:  # else it is the caller's choice what there is
            check_layers_are_whole(_unevenly_missing(cut, info["missing_keys"]))
        _settle(model, cut)
    elif keep_layers is not None:
        named = resolve(keep_layers, depths_of(model), _recommended(name_or_path, kwargs))
        prune_layers(model, named, source=_shown_source(name_or_path))
        _forget_unpacked(model)
    elif headers is not None and not set(kwargs) & DEPTHS:
        _check_held(model, headers)
    return model, info


def _of_classes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what Auto classes alone take: of ``trust_remote_code``, others print that it has no effect."""
    return {name: value for name, value in kwargs.items() if name != "trust_remote_code"}


def _check_native(kwargs: Mapping[str, Any]) -> None:
    """Refuse rates of a model's own LayerDrop beside ``keep_layers``: a model that is cut drops nothing unasked."""
    given = {name: rate for name, rate in kwargs.items() if NATIVE_RATE.fullmatch(name) and rate}
    if given:
        name, rate = next(iter(given.items()))
        raise LayerDropConfigError(
            f"{name}={rate} was given with keep_layers, which switches the model's own LayerDrop off: leave it out, "
            "and give the rate as layerdrop= of the classes that train."
        )


@contextmanager
def _reading(
    cls: type[PreTrainedModel], name_or_path: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Blame the checkpoint for whatever is raised, unless a caller's arguments may be to blame and its config builds.

    Raises:
        CheckpointError: If its files are to blame.
    """
    given = sorted(set(kwargs) - {*WHERE, "use_safetensors", "output_loading_info"})
    alone = not args and not given
    try:
        with reading(name_or_path, alone=alone):
            yield
    except CheckpointError as error:
        if alone or not isinstance(error.__cause__, ValueError | RuntimeError):
            raise
        raise CheckpointError(
            f"The checkpoint {str(name_or_path)!r} could not be loaded with {', '.join(given) or 'these arguments'} "
            f"({reason_of(error.__cause__)}): change that, or, if it does not load without it either, download it anew."
        ) from error.__cause__
    except LayerDropError:
        raise
    except Exception as error:
        if not out_of_memory(error) and name_or_path is not None and kwargs.get("config") is None:
            with reading(name_or_path, alone=True):
                built_on_meta(cls, cls.config_class.from_pretrained(name_or_path, **_of_classes(where_of(kwargs))))
        raise


def _forget_unpacked(model: PreTrainedModel) -> None:
    """Let a model be saved whose weights were quantized in a file of GGUF, and are no longer."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not getattr(quantizer, "packed_modules", True):
        quantizer.remove_quantization_config(model)


def _unevenly_missing(cut: Cut, missing: Iterable[str]) -> list[tuple[str, int, str]]:
    """Return the places of the missing weights that other kept layers have: of a damaged file.

    What all of them lack is new by design, such as the cross-attention of an encoder that becomes a decoder.
    """
    places = [place for place in map(cut.place_of, missing) if place is not None]
    lacking = Counter((stack, rest) for stack, _, rest in places)
    return [place for place in places if lacking[place[0], place[2]] < max(len(cut.kept[place[0]]), 2)]


def _plan(
    cls: type[PreTrainedModel],
    name_or_path: Any,
    keep_layers: KeepLayers,
    kwargs: Mapping[str, Any],
    headers: CheckpointHeaders | None,
) -> Cut:
    """Read the config of a checkpoint, and find out which of its layers are kept; files begin to be read meanwhile."""

    def begin(cut: Cut) -> None:
        if headers is not None:
            check_layers(headers.tensors, cut.names)
            read_ahead(headers.source, cut.choose(headers.tensors).values())

    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config or name_or_path, **_of_classes(where_of(kwargs)))
    revision = kwargs.get("revision") or getattr(config, compat.COMMIT.name, None)
    source = _shown_source(name_or_path)
    recommended = _recommended(name_or_path, {**kwargs, "revision": revision})
    cut = plan_cut(cls, config, keep_layers, recommended=recommended, on_chosen=begin, source=source, revision=revision)
    _check_quantization(cut)
    return cut


def _recommended(name_or_path: Any, kwargs: Mapping[str, Any]) -> Callable[[], RecommendedSets]:
    """Return what reads the recommended sets of a checkpoint, once they are asked for."""

    def read() -> RecommendedSets:
        if name_or_path is None:
            raise KeepLayersError(
                "Recommended sets lie beside a checkpoint, and weights were given without one (state_dict=): name the "
                "layers, such as keep_layers=6."
            )
        return table_beside(name_or_path, kwargs)

    return read


def _check_quantization(cut: Cut) -> None:
    """Refuse lists of layers in the quantization of a checkpoint: it has been read before layers get new numbers."""
    quantization = getattr(cut.config, "quantization_config", None)
    if names_layers(quantization, cut.names.stacks, cut.kept):
        raise UnsupportedModelError(
            "The quantization config of the checkpoint names layers by their numbers, which a cut while loading would "
            "change too late: load the whole model and call prune_layers, which gives them their new numbers."
        )


def _load_cut(
    cut: Cut, name_or_path: Any, args: Sequence[Any], kwargs: Mapping[str, Any], leftovers: dict[str, Any] | None
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load the kept layers, of a model on the Hub from what is fetched of it."""
    if (given := kwargs.get("quantization_config")) is not None:
        kwargs = {**kwargs, "quantization_config": renumber_quantization(given, cut.names.stacks, cut.kept)}
    hub_model = _hub_model(cut.config, name_or_path, kwargs)
    folder = fetch_kept(hub_model, cut.kept_by_path(), cut.choose) if hub_model else None
    if hub_model is None or folder is None:
        loader = loader_class(cut, cut.choose, leftovers)
        model, info = loader.from_pretrained(name_or_path, *args, **_of_classes(kwargs))
    else:
        here = {name: value for name, value in kwargs.items() if name not in WHERE}
        model, info = loader_class(cut, dict, leftovers).from_pretrained(folder, *args, **here)
        model.config.name_or_path = model.name_or_path = hub_model.repo_id
        setattr(model.config, compat.COMMIT.name, hub_model.commit)
    model.__class__ = cut.cls
    return model, info


def _settle(model: PreTrainedModel, cut: Cut) -> None:
    """Change what does not fit a model that was cut: its own LayerDrop, and what generates with it."""
    stacks = find_stacks(model)
    renumber_generation(getattr(model, "generation_config", None), cut.names.stacks, cut.kept)
    switch_off_native(model)
    settle_cache(model, stacks)


def _hub_model(config: PreTrainedConfig, name_or_path: Any, kwargs: Mapping[str, Any]) -> HubModel | None:
    """Return where on the Hub to take the kept layers from, or None where transformers has to find the files itself."""
    given = {name for name, value in kwargs.items() if value}
    if name_or_path is None or is_there(name_or_path) or kwargs.get("use_safetensors") is False:
        return None
    if given & _FILES_OF_THEIR_OWN or type(config).extra_files or getattr(config, "transformers_weights", None):
        return None
    if isinstance(kwargs.get("config"), str | os.PathLike):
        return None
    where: dict[str, Any] = {
        name: kwargs[name] for name in ("token", "cache_dir", "local_files_only") if kwargs.get(name) is not None
    }
    revision = resolve_revision(name_or_path, kwargs.get("revision"), **where)
    commit = getattr(revision, "resolved", revision)
    if not _COMMIT.fullmatch(commit or ""):  # offline and never seen, say
        return None
    for name in ("subfolder", "force_download"):
        where |= {name: kwargs[name]} if kwargs.get(name) else {}
    return HubModel(str(name_or_path), commit, **where)


def check_source(cls: type[PreTrainedModel], name_or_path: Any, kwargs: Mapping[str, Any]) -> CheckpointHeaders | None:
    """Find what is wrong with a local checkpoint before anything is loaded; return its headers if they were read."""
    if reason := refusal(cls.config_class.model_type if cls.config_class else None):
        raise UnsupportedModelError(f"{cls.__name__} cannot be used with LayerDrop: {reason}")
    if name_or_path is None or isinstance(kwargs.get("config"), PreTrainedConfig) or kwargs.get("gguf_file"):
        return None
    if not (is_there(name_or_path) and Path(name_or_path).is_dir()):
        with reading(name_or_path):
            found, _ = PreTrainedConfig.get_config_dict(name_or_path, **where_of(kwargs))
        check_architecture(cls, found, name_or_path)
        check_declared(name_or_path, found, kwargs)
        return None
    folder = Path(name_or_path) / (kwargs.get("subfolder") or "")
    if (folder / "adapter_config.json").exists():
        return None
    check_architecture(cls, read_config(folder), name_or_path)
    if kwargs.get("use_safetensors") is False or kwargs.get("variant"):
        return None
    headers = read_checkpoint(folder)
    check_metadata(folder)
    if not set(kwargs) & DEPTHS:
        check_depths(headers)
    return headers


def _check_held(model: PreTrainedModel, headers: CheckpointHeaders) -> None:
    """Refuse files of other layers than the config counts: transformers makes up what is missing, with a warning."""
    with suppress(UnsupportedModelError):  # a model without stacks, which may be loaded whole
        check_layers(headers.tensors, WeightNames(model, find_stacks(model)))


def _shown_source(name_or_path: Any) -> str | None:
    """Return what may be written into a checkpoint that others will read: a Hub id, or the name of a local folder."""
    if name_or_path is None:
        return None
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
