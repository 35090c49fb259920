"""Stand-ins for transformers' classes through which a checkpoint is read: whole, or some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import Unfilled
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.checkpoints.leftovers import left_over
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, saved_provenance
from hf_layerdrop.checkpoints.weight_slices import open_slices
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError
from hf_layerdrop.pruning.plan import Cut
from hf_layerdrop.pruning.prune import cut_provenance, pruned_config
from hf_layerdrop.pruning.weight_checks import check_shapes

Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _stands_in(loader: type, cls: type) -> None:
    """Give a subclass the name and module of its class: transformers does not convert checkpoints of custom code."""
    loader.__name__, loader.__qualname__, loader.__module__ = cls.__name__, cls.__qualname__, cls.__module__


def reader_class(cls: type[PreTrainedModel], leftovers: dict[str, Any]) -> type[PreTrainedModel]:
    """Return a stand-in for a class that notes the weights of a checkpoint that it has no place for."""
    load = getattr(cls, compat.LOAD_WEIGHTS.name)

    class Reader(cls):
        pass

    def load_all(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        result = load(model, state_dict, checkpoint_files, *args, **kwargs)
        if checkpoint_files is not None and state_dict is None and result[0].unexpected_keys:
            with ExitStack() as files:
                leftovers.update(left_over(model, _open(checkpoint_files, files), result[0].unexpected_keys))
        return result

    compat.LOAD_WEIGHTS.replace(Reader, staticmethod(load_all))
    _stands_in(Reader, cls)
    return Reader


def loader_class(cut: Cut, change: Change, leftovers: dict[str, Any] | None) -> type[PreTrainedModel]:
    """Return a stand-in for a class that cuts the config before the model is built, the weights before they are read.

    It notes, too, what is left over of them.
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
            mapped = not getattr(load_config, "disable_mmap", None)
            weights = change(state_dict if state_dict is not None else _open(checkpoint_files, files, mapped))
            # Without the files: disk offload would look them up under the new layer numbers.
            result = load(model, weights, None, load_config, *args, **kw)
            if leftovers is not None and state_dict is None:
                leftovers.update(left_over(model, weights, result[0].unexpected_keys))
        if not load_config.ignore_mismatched_sizes:
            check_shapes((cut.name_in_whole(name), *shapes) for name, *shapes in result[0].mismatched_keys)
        return result

    compat.LOAD_WEIGHTS.replace(Loader, staticmethod(load_kept))
    _stands_in(Loader, cls)
    return Loader


def _check_depth(config: PreTrainedConfig, name: str, stack: Stack) -> None:
    """Refuse a depth that was given beside ``keep_layers``: one of the two would be wrong."""
    found = getattr(stack.config(config), stack.depth_field)
    if found != stack.depth:
        raise CheckpointError(
            f"{stack.depth_field}={found} was given with keep_layers, but the checkpoint's {name} has {stack.depth} "
            "layers; leave it out, keep_layers sets it."
        )


def _open(checkpoint_files: Iterable[str], files: ExitStack, mapped: bool = True) -> dict[str, Any]:
    """Return the weights of a checkpoint by name; of mapped ones in safetensors nothing has been read yet."""
    weights: dict[str, Any] = {}
    for path in checkpoint_files:
        if not mapped:
            weights |= load_state_dict(path, disable_mmap=True)
        else:
            weights |= open_slices(path, files) if path.endswith(".safetensors") else load_state_dict(path)
    return weights
