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
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import resolve_revision

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import BUILDING, Unfilled, built_on_meta
from hf_layerdrop.architectures.families import DEPTH_FIELDS, refusal
from hf_layerdrop.architectures.layer_numbers import names_layers, renumber_generation, renumber_quantization
from hf_layerdrop.architectures.stacks import Stack, find_stacks
from hf_layerdrop.checkpoints.adapter_files import adapted_base
from hf_layerdrop.checkpoints.downloads import HubModel, fetch_kept
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, check_metadata, read_checkpoint, read_config
from hf_layerdrop.checkpoints.model_class import WHERE, check_architecture, where_of
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, saved_provenance
from hf_layerdrop.checkpoints.stored_model import check_depths
from hf_layerdrop.checkpoints.strangers import out_of_memory
from hf_layerdrop.checkpoints.unreadable import is_there, reading
from hf_layerdrop.checkpoints.weight_names import WeightNames, check_layers
from hf_layerdrop.checkpoints.weight_slices import open_slices, read_ahead
from hf_layerdrop.errors import CheckpointError, LayerDropError, UnsupportedModelError
from hf_layerdrop.injection.native import switch_off_native
from hf_layerdrop.pruning.generation_cache import settle_cache
from hf_layerdrop.pruning.plan import Cut, plan_cut
from hf_layerdrop.pruning.prune import cut_provenance, prune_layers, pruned_config
from hf_layerdrop.pruning.weight_checks import check_layers_are_whole, check_shapes
from hf_layerdrop.samplers.keep_layers import KeepLayers

Change = Callable[[Mapping[str, Any]], dict[str, Any]]

# Arguments with which transformers looks for other files than model.safetensors or its shards, or for more of them.
_FILES_OF_THEIR_OWN = {"variant", "gguf_file", "state_dict", "adapter_kwargs", "proxies", "trust_remote_code"}
_DEPTHS = set(chain(*DEPTH_FIELDS.values()))  # one that is given on purpose is transformers' business
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_plain(
    cls: type[PreTrainedModel], name_or_path: Any, *args: Any, keep_layers: KeepLayers | None = None, **kwargs: Any
) -> Any:
    """Load a model of a transformers class through its own ``from_pretrained``, whole or with ``keep_layers`` alone.

    Only safetensors are read, unless ``use_safetensors=False`` asks for a pickle checkpoint.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of another architecture.
        KeepLayersError: If ``keep_layers`` does not fit the checkpoint.
        UnsupportedModelError: If the model's layers cannot be taken out.
    """
    headers = check_source(cls, name_or_path, kwargs)
    if name_or_path is not None:
        kwargs.setdefault("use_safetensors", True)
    with BUILDING, _reading(cls, name_or_path, args, kwargs):
        if keep_layers is None:
            loaded = cls.from_pretrained(name_or_path, *args, **kwargs)
            if headers is not None and not set(kwargs) & _DEPTHS:
                _check_held(_model_of(loaded), headers)
            return loaded
        if kwargs.get("gguf_file") or adapted_base(name_or_path, kwargs) is not None:
            # Transformers puts an adapter into a model by layer numbers, which are those of the whole model; and its
            # reader of GGUF makes the names of weights while it reads them.
            loaded = cls.from_pretrained(name_or_path, *args, **kwargs)
            prune_layers(_model_of(loaded), keep_layers, source=_shown_source(name_or_path))
            _forget_unpacked(_model_of(loaded))
            return loaded
        cut = _plan(cls, name_or_path, keep_layers, kwargs)
        if headers is not None:
            check_layers(headers.tensors, cut.names)
            read_ahead(headers.source, cut.choose(headers.tensors).values())
        loaded, info = _load_cut(cut, name_or_path, args, {**kwargs, "output_loading_info": True})
        if kwargs.get("state_dict") is None:  # else it is the caller's choice what there is
            check_layers_are_whole(_unevenly_missing(cut, info["missing_keys"]))
        _settle(loaded, cut)
        return (loaded, info) if kwargs.get("output_loading_info") else loaded


@contextmanager
def _reading(
    cls: type[PreTrainedModel], name_or_path: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Blame the checkpoint for whatever is raised, unless a caller's arguments may be to blame and its config builds.

    Raises:
        CheckpointError: If its files are to blame.
    """
    alone = not args and set(kwargs) <= {*WHERE, "use_safetensors", "output_loading_info"}
    try:
        with reading(name_or_path, alone=alone):
            yield
    except LayerDropError:
        raise
    except Exception as error:
        if not out_of_memory(error) and name_or_path is not None and kwargs.get("config") is None:
            with reading(name_or_path, alone=True):
                built_on_meta(cls, cls.config_class.from_pretrained(name_or_path, **where_of(kwargs)))
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


def _plan(cls: type[PreTrainedModel], name_or_path: Any, keep_layers: KeepLayers, kwargs: Mapping[str, Any]) -> Cut:
    """Read the config of a checkpoint, and find out which of its layers are kept."""
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config or name_or_path, **where_of(kwargs))
    revision = kwargs.get("revision") or getattr(config, compat.COMMIT.name, None)
    cut = plan_cut(cls, config, keep_layers, source=_shown_source(name_or_path), revision=revision)
    _check_quantization(cut)
    return cut


def _check_quantization(cut: Cut) -> None:
    """Refuse lists of layers in the quantization of a checkpoint: it has been read before layers get new numbers."""
    quantization = getattr(cut.config, "quantization_config", None)
    if names_layers(quantization, cut.names.stacks, cut.kept):
        raise UnsupportedModelError(
            "The quantization config of the checkpoint names layers by their numbers, which a cut while loading would "
            "change too late: load the whole model and call prune_layers, which gives them their new numbers."
        )


def _load_cut(cut: Cut, name_or_path: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Load the kept layers, of a model on the Hub from what is fetched of it."""
    if (given := kwargs.get("quantization_config")) is not None:
        kwargs = {**kwargs, "quantization_config": renumber_quantization(given, cut.names.stacks, cut.kept)}
    hub_model = _hub_model(cut.config, name_or_path, kwargs)
    folder = fetch_kept(hub_model, cut.kept_by_path(), cut.choose) if hub_model else None
    if hub_model is None or folder is None:
        loader = _loader_class(cut, cut.choose)
        loaded = loader.from_pretrained(name_or_path, *args, **kwargs)
    else:
        here = {name: value for name, value in kwargs.items() if name not in WHERE}
        loaded = _loader_class(cut, dict).from_pretrained(folder, *args, **here)
        config = _model_of(loaded).config
        config.name_or_path = _model_of(loaded).name_or_path = hub_model.repo_id
        setattr(config, compat.COMMIT.name, hub_model.commit)
    _model_of(loaded).__class__ = cut.cls
    return loaded


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


def _model_of(loaded: Any) -> PreTrainedModel:
    """Return the model of what ``from_pretrained`` returned, with ``output_loading_info`` or without."""
    return loaded[0] if isinstance(loaded, tuple) else loaded


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
        return None
    folder = Path(name_or_path) / (kwargs.get("subfolder") or "")
    if (folder / "adapter_config.json").exists():
        return None
    check_architecture(cls, read_config(folder), name_or_path)
    if kwargs.get("use_safetensors") is False or kwargs.get("variant"):
        return None
    headers = read_checkpoint(folder)
    check_metadata(folder)
    if not set(kwargs) & _DEPTHS:
        check_depths(headers)
    return headers


def _check_held(model: PreTrainedModel, headers: CheckpointHeaders) -> None:
    """Refuse files of other layers than the config counts: transformers makes up what is missing, with a warning."""
    with suppress(UnsupportedModelError):  # a model without stacks, which may be loaded whole
        check_layers(headers.tensors, WeightNames(model, find_stacks(model)))


def _loader_class(cut: Cut, change: Change) -> type[PreTrainedModel]:
    """Return a stand-in for a class that cuts the config before the model is built, the weights before they are read.

    It carries the name and module of the class, since transformers treats classes of other modules as custom code,
    whose checkpoints it does not convert.
    """
    cls, stacks = cut.cls, cut.names.stacks
    load = getattr(cls, compat.LOAD_WEIGHTS.name)

    class Loader(cls):  # type: ignore[misc, valid-type]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            depths = {name: stack.depth for name, stack in stacks.items()}
            for name, stack in stacks.items():
                _check_depth(config, name, stack)
            saved = saved_provenance(config)
            setattr(config, CONFIG_KEY, cut_provenance(saved, cut.kept, depths, **cut.provenance))
            pruned_config(config, stacks, cut.kept)
            with Unfilled():  # on the meta device there is nothing to fill; what is missing is filled later
                super().__init__(config, *args, **kwargs)

        def load_adapter(self, *args: Any, **kwargs: Any) -> None:
            raise UnsupportedModelError(
                "The checkpoint comes with a PEFT adapter, which is cut with its base in memory alone; download it "
                "and give the folder, or load it whole and call prune_layers."
            )

    def load_kept(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kw: Any) -> Any:
        with ExitStack() as files:
            weights = state_dict if state_dict is not None else _open(checkpoint_files, files)
            # Without the files: disk offload would look them up under the new layer numbers.
            result = load(model, change(weights), None, load_config, *args, **kw)
        if not load_config.ignore_mismatched_sizes:
            check_shapes((cut.name_in_whole(name), *shapes) for name, *shapes in result[0].mismatched_keys)
        return result

    compat.LOAD_WEIGHTS.replace(Loader, staticmethod(load_kept))
    Loader.__name__, Loader.__qualname__, Loader.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Loader


def _check_depth(config: PreTrainedConfig, name: str, stack: Stack) -> None:
    """Refuse a depth that was given beside ``keep_layers``: one of the two would be wrong."""
    found = getattr(stack.config(config), stack.depth_field)
    if found != stack.depth:
        raise CheckpointError(
            f"{stack.depth_field}={found} was given with keep_layers, but the checkpoint's {name} has {stack.depth} "
            "layers; leave it out, keep_layers sets it."
        )


def _open(checkpoint_files: Iterable[str], files: ExitStack) -> dict[str, Any]:
    """Return the weights of a checkpoint by name; of those in safetensors nothing has been read yet."""
    weights: dict[str, Any] = {}
    for path in checkpoint_files:
        weights |= open_slices(path, files) if path.endswith(".safetensors") else load_state_dict(path)
    return weights


def _shown_source(name_or_path: Any) -> str | None:
    """Return what may be written into a checkpoint that others will read: a Hub id, or the name of a local folder."""
    if name_or_path is None:
        return None
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
