"""Load some layers of a checkpoint: ``keep_layers`` at ``from_pretrained``, all other arguments untouched.

The kept layers are chosen and renumbered between the checkpoint and transformers' own loader. Everything that the
loader does (legacy names, tied weights, dtype, device map, quantization) therefore happens as for a checkpoint that
had these layers alone. Transformers' ``key_mapping`` is not used: it applies its patterns one after another, so that a
renumbered layer can match again, and ``save_pretrained`` reverses it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import load_state_dict

from hf_layerdrop.errors import CheckpointError, LayerDropError, UnsupportedModelError
from hf_layerdrop.families import DEPTH_FIELDS, bias_in_first_block, refusal
from hf_layerdrop.headers import read_checkpoint, read_config
from hf_layerdrop.injection import CONFIG_KEY, switch_off_native
from hf_layerdrop.keep import KeepLayers, choice_behind, parse_keep_layers
from hf_layerdrop.pruning import cut_provenance, prune_layers, pruned_config
from hf_layerdrop.rebuilding import built_on_meta, check_rebuilds
from hf_layerdrop.stacks import Stack, find_stacks

# Arguments of from_pretrained that say where a checkpoint is; the config is looked up with the same ones.
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code")


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
    check_source(cls, name_or_path, kwargs)
    if name_or_path is not None:
        kwargs.setdefault("use_safetensors", True)
    with clear_errors(name_or_path):
        if keep_layers is None:
            return cls.from_pretrained(name_or_path, *args, **kwargs)
        if adapted_base(name_or_path, kwargs) is not None:
            # Transformers puts an adapter into a model by layer numbers, which are those of the whole model.
            loaded = cls.from_pretrained(name_or_path, *args, **kwargs)
            prune_layers(
                loaded[0] if isinstance(loaded, tuple) else loaded, keep_layers, source=_shown_source(name_or_path)
            )
            return loaded
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(config or name_or_path, **_where(kwargs))
        whole = built_on_meta(cls, config)
        stacks = find_stacks(whole)
        kept = parse_keep_layers(keep_layers, {name: stack.depth for name, stack in stacks.items()})
        provenance = {
            **choice_behind(keep_layers),
            "source": _shown_source(name_or_path),
            "revision": kwargs.get("revision") or getattr(config, "_commit_hash", None),
        }
        _check_cut(whole, stacks, kept)
        names = WeightNames(whole, stacks)
        loaded = _loader_class(cls, names, kept, provenance).from_pretrained(name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.__class__ = cls
        switch_off_native(model, find_stacks(model))
        return loaded


def check_source(cls: type[PreTrainedModel], name_or_path: Any, kwargs: Mapping[str, Any]) -> None:
    """Find what is wrong with a local checkpoint before anything is loaded: config, architecture, weight headers."""
    if reason := refusal(cls.config_class.model_type if cls.config_class else None):
        raise UnsupportedModelError(f"{cls.__name__} cannot be used with LayerDrop: {reason}")
    if name_or_path is None or isinstance(kwargs.get("config"), PreTrainedConfig) or kwargs.get("gguf_file"):
        return
    if not Path(name_or_path).is_dir():
        with clear_errors(name_or_path):
            found, _ = PreTrainedConfig.get_config_dict(name_or_path, **_where(kwargs))
        check_architecture(cls, found, name_or_path)
        return
    folder = Path(name_or_path) / (kwargs.get("subfolder") or "")
    if (folder / "adapter_config.json").exists():
        return
    check_architecture(cls, read_config(folder), name_or_path)
    if kwargs.get("use_safetensors") is not False and not kwargs.get("variant"):
        headers = read_checkpoint(folder)
        if not set(kwargs) & set(chain(*DEPTH_FIELDS.values())):  # a depth given on purpose is transformers' business
            with suppress(
                UnsupportedModelError
            ):  # looking at names knows less than looking at the model, which follows
                headers.stacks()


def adapted_base(name_or_path: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Return the base model that the config of a PEFT adapter in a folder names; None for any other checkpoint."""
    config = Path(name_or_path or "", kwargs.get("subfolder") or "", "adapter_config.json")
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"] if config.is_file() else None


def _where(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in WHERE if name in kwargs}


def check_architecture(cls: type[PreTrainedModel], config: Mapping[str, Any], name_or_path: Any) -> None:
    """Refuse a checkpoint of another model type, which transformers would load with random weights and a warning."""
    wanted, found = cls.config_class.model_type if cls.config_class else None, config.get("model_type")
    if wanted and found and wanted != found:
        raise CheckpointError(
            f"{str(name_or_path)!r} is a checkpoint of model type {found!r}, but {cls.__name__} loads {wanted!r}; "
            "use an AutoLayerDropModel class, which chooses by the checkpoint."
        )


def _check_cut(whole: PreTrainedModel, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse what plain transformers would rebuild otherwise, before any weight is read."""
    config = copy.deepcopy(whole.config)
    config.__dict__.pop(CONFIG_KEY, None)
    pruned_config(config, stacks, kept)
    check_rebuilds(whole, built_on_meta(type(whole), config), stacks, kept)


def _loader_class(
    cls: type[PreTrainedModel],
    names: WeightNames,
    kept: Mapping[str, Sequence[int]],
    provenance: Mapping[str, Any],
) -> type[PreTrainedModel]:
    """Return a stand-in for ``cls`` that cuts the config before the model is built, the weights before they are read.

    It carries the name and module of ``cls``, since transformers treats classes of other modules as custom code, whose
    checkpoints it does not convert.
    """

    class Loader(cls):
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            depths = {name: stack.depth for name, stack in names.stacks.items()}
            for name, stack in names.stacks.items():
                _check_depth(config, name, stack)
            saved = getattr(config, CONFIG_KEY, None)
            setattr(config, CONFIG_KEY, cut_provenance(saved, kept, depths, **provenance))
            pruned_config(config, names.stacks, kept)
            super().__init__(config, *args, **kwargs)

        def load_adapter(self, *args: Any, **kwargs: Any) -> None:
            raise UnsupportedModelError(
                "The checkpoint comes with a PEFT adapter, which is cut with its base in memory alone; download it "
                "and give the folder, or load it whole and call prune_layers."
            )

        @staticmethod
        def _load_pretrained_model(
            model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any
        ) -> Any:
            with ExitStack() as files:
                weights = state_dict if state_dict is not None else _open(checkpoint_files, files)
                chosen = dict(keep_weights(weights, names, kept))
                # Without the files: disk offload would look them up under the new layer numbers.
                return cls._load_pretrained_model(model, chosen, None, *args, **kwargs)

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


class WeightNames:
    """Tell which layer a weight of a checkpoint belongs to; its name need not be the model's.

    A checkpoint may be of the base model or of any head, and older ones have other names, which transformers' own
    conversions know.
    """

    def __init__(self, model: PreTrainedModel, stacks: Mapping[str, Stack]) -> None:
        self.stacks = stacks
        conversions = get_model_conversion_mapping(model)
        self._renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        self._converters = [each for each in conversions if isinstance(each, WeightConverter)]
        base = re.escape(model.base_model_prefix)
        tails = {name: stack.path.removeprefix(model.base_model_prefix + ".") for name, stack in stacks.items()}
        self._patterns = {
            name: re.compile(rf"(?:{base}\.)?{re.escape(tail)}\.(\d+)\.(.+)") for name, tail in tails.items()
        }

    def layer_of(self, weight: str) -> tuple[str, int, str] | None:
        """Return the stack, the layer, and the name in the layer; None for what belongs to no layer."""
        renamed, _ = rename_source_key(weight, self._renamings, self._converters)
        for name, pattern in self._patterns.items():
            if match := pattern.fullmatch(renamed):
                return name, int(match[1]), match[2]
        return None

    def renumbered(self, weight: str, stack: str, old: int, new: int) -> str:
        """Return the name that a weight of layer ``old`` has in layer ``new``."""
        if old == new:
            return weight
        parts = weight.split(".")
        for place in (place for place, part in enumerate(parts) if part == str(old)):
            candidate = ".".join([*parts[:place], str(new), *parts[place + 1 :]])
            found = self.layer_of(candidate)
            if found is not None and found[:2] == (stack, new):
                return candidate
        raise UnsupportedModelError(
            f"The weight {weight!r} of layer {old} of the {stack} does not say its layer in its name, so layers cannot "
            "be chosen while loading; load the whole model and call prune_layers."
        )


def keep_weights(
    weights: Mapping[str, Any], names: WeightNames, kept: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Any]]:
    """Yield the weights of the kept layers under their new numbers, and all that belongs to no layer, in their order.

    What the first block owns for all goes to the first block that is kept.

    Raises:
        CheckpointError: If the layers in the checkpoint are not those that its config counts.
    """
    stacks = names.stacks
    found: dict[str, set[int]] = {name: set() for name in stacks}
    for weight, value in weights.items():
        place = names.layer_of(weight)
        if place is None:
            yield weight, value
            continue
        name, layer, rest = place
        found[name].add(layer)
        if layer in kept[name]:
            yield names.renumbered(weight, name, layer, kept[name].index(layer)), value
        elif layer == 0 and _is_for_all(rest, stacks[name]):
            yield weight, value
    for name, stack in stacks.items():
        if not found[name]:
            raise UnsupportedModelError(
                f"The checkpoint names the layers of the {name} otherwise than the model does ({stack.path}), so they "
                "cannot be chosen while loading; load the whole model and call prune_layers."
            )
        if found[name] != set(range(stack.depth)):
            raise CheckpointError(
                f"The config says that the {name} has {stack.depth} layers, but the weights hold "
                f"{_listed(found[name])}; "
                "the checkpoint's files do not belong together, so download it again."
            )


def _is_for_all(name: str, stack: Stack) -> bool:
    """Tell a weight that the first block owns for all others."""
    bias = bias_in_first_block(stack.model_type)
    return bias is not None and any(part in bias.weights for part in name.split("."))


def _open(checkpoint_files: Iterable[str], files: ExitStack) -> dict[str, Any]:
    """Return the weights of a checkpoint by name; those of safetensors are slices that nothing has been read of yet."""
    weights: dict[str, Any] = {}
    for path in checkpoint_files:
        if path.endswith(".safetensors"):
            file = files.enter_context(safe_open(path, framework="pt"))
            weights.update({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118 - not a dict
        else:
            weights.update(load_state_dict(path))
    return weights


@contextmanager
def clear_errors(name_or_path: Any) -> Iterator[None]:
    """Turn what transformers and safetensors raise about a checkpoint into one sentence that says what to do.

    Raises:
        CheckpointError: For each of these.
    """
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {str(name_or_path)!r} cannot be read ({error}); the file is damaged, so download it again."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, LayerDropError) or not _speaks_of_checkpoint(error):
            raise
        reason = " ".join(str(error).split())
        if "safetensors" in reason and "use_safetensors" not in reason:
            reason += " Pass use_safetensors=False to read a pickle checkpoint that you trust."
        raise CheckpointError(f"{str(name_or_path)!r} cannot be loaded: {reason}") from error


def _speaks_of_checkpoint(error: Exception) -> bool:
    """Tell transformers' complaint about an unknown model type, a bare ValueError, from one about an argument."""
    return isinstance(error, OSError) or "model type" in str(error) or "Unrecognized model" in str(error)


def _shown_source(name_or_path: Any) -> str | None:
    """Return what may be written into a checkpoint that others will read: a Hub id, or the name of a local folder."""
    if name_or_path is None:
        return None
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)


def _listed(layers: set[int]) -> str:
    return f"{len(layers)} layers ({min(layers)} to {max(layers)})" if layers else "none"
