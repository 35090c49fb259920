"""Load some layers of a checkpoint: ``keep_layers`` at ``from_pretrained``, all other arguments untouched.

The kept layers are chosen and renumbered between the checkpoint and transformers' own loader. Everything that the
loader does (legacy names, tied weights, dtype, device map, quantization) therefore happens as for a checkpoint that
had these layers alone. Transformers' ``key_mapping`` is not used: it applies its patterns one after another, so that a
renumbered layer can match again, and ``save_pretrained`` reverses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict

from hf_layerdrop.errors import CheckpointError, LayerDropError, UnsupportedModelError
from hf_layerdrop.families import DEPTH_FIELDS, refusal
from hf_layerdrop.headers import read_checkpoint, read_config
from hf_layerdrop.injection import CONFIG_KEY, switch_off_native
from hf_layerdrop.keep import KeepLayers, parse_keep_layers
from hf_layerdrop.pruning import cut_provenance, prune_layers, pruned_config
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
        stacks = _stacks_of(cls, config)
        kept = parse_keep_layers(keep_layers, {name: stack.depth for name, stack in stacks.items()})
        provenance = {
            "source": _shown_source(name_or_path),
            "revision": kwargs.get("revision") or getattr(config, "_commit_hash", None),
        }
        loaded = _loader_class(cls, stacks, kept, provenance).from_pretrained(name_or_path, *args, **kwargs)
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


def _stacks_of(cls: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Stack]:
    with torch.device("meta"):
        return find_stacks(cls(config))


def _loader_class(
    cls: type[PreTrainedModel],
    stacks: Mapping[str, Stack],
    kept: Mapping[str, Sequence[int]],
    provenance: Mapping[str, Any],
) -> type[PreTrainedModel]:
    """Return a stand-in for ``cls`` that cuts the config before the model is built, the weights before they are read.

    It carries the name and module of ``cls``, since transformers treats classes of other modules as custom code, whose
    checkpoints it does not convert.
    """

    class Loader(cls):
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            depths = {name: stack.depth for name, stack in stacks.items()}
            for name, stack in stacks.items():
                _check_depth(config, name, stack)
            saved = getattr(config, CONFIG_KEY, None)
            setattr(config, CONFIG_KEY, cut_provenance(saved, kept, depths, **provenance))
            pruned_config(config, stacks, kept)
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
                chosen = dict(keep_weights(weights, cls.base_model_prefix, stacks, kept))
                # Without the files: disk offload would look them up under the new layer numbers.
                return cls._load_pretrained_model(model, chosen, None, *args, **kwargs)

    Loader.__name__, Loader.__qualname__, Loader.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Loader


def _check_depth(config: PreTrainedConfig, name: str, stack: Stack) -> None:
    """Refuse a depth that was given beside ``keep_layers``: one of the two would be wrong."""
    found = getattr(config, stack.depth_field)
    if found != stack.depth:
        raise CheckpointError(
            f"{stack.depth_field}={found} was given with keep_layers, but the checkpoint's {name} has {stack.depth} "
            "layers; leave it out, keep_layers sets it."
        )


def keep_weights(
    weights: Mapping[str, Any], base_model_prefix: str, stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Any]]:
    """Yield the weights of the kept layers under their new numbers, and all that belongs to no layer, in their order.

    A checkpoint may be of the base model or of any head, so names are compared without the base model's prefix.

    Raises:
        CheckpointError: If the layers in the checkpoint are not those that its config counts.
    """
    tails = {name: stack.path.removeprefix(base_model_prefix + ".") for name, stack in stacks.items()}
    patterns = {name: re.compile(rf"((?:[^.]+\.)*?{re.escape(tail)}\.)(\d+)(\..+)") for name, tail in tails.items()}
    found: dict[str, set[int]] = {name: set() for name in stacks}
    for weight, value in weights.items():
        for name, pattern in patterns.items():
            if match := pattern.fullmatch(weight):
                layer = int(match[2])
                found[name].add(layer)
                if layer in kept[name]:
                    yield f"{match[1]}{kept[name].index(layer)}{match[3]}", value
                break
        else:
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
