"""Write a pruned checkpoint by copying the bytes of its tensors: the model is never in memory.

The model is loaded without its weights, which gives the config, the names and the dtypes that saving it would write.
If the tensors lie in the source's files under these names, as they are, their bytes are copied.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.weight_files import StoredTensor, stream_local, write_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Arguments that say where the source is, or that are what they would be anyway; all others may change weights.
_HARMLESS = {"token", "cache_dir", "local_files_only", "force_download", "subfolder"}


class StreamedCheckpoint:
    """A pruned model without weights, and where its weights lie."""

    def __init__(self, model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> None:
        self.model, self._tensors = model, tensors

    def save(self, folder: Path) -> None:
        """Write what ``save_pretrained`` of the model would write."""
        with _without_bars():
            self.model.save_pretrained(folder, state_dict={})
        write_weights(folder, self._tensors, stream_local, parameters=self.model.num_parameters())


def find_streamed(
    model: Any, keep_layers: Any, revision: str | None, load_kwargs: Mapping[str, Any]
) -> StreamedCheckpoint | None:
    """Return a checkpoint that can be cut by copying bytes, or None if the model has to be built for it.

    Raises:
        KeepLayersError: ``keep_layers`` does not fit the checkpoint.
        CheckpointError: The checkpoint is damaged.
    """
    if not isinstance(model, str | os.PathLike) or keep_layers is None:
        return None
    if others := sorted(name for name in load_kwargs if name not in _HARMLESS):
        logger.info("%s is cut in memory, because of %s.", os.fspath(model), ", ".join(others))
        return None
    named: dict[str, Any] = {} if revision is None else {"revision": revision}
    found, reason = _find_tensors(os.fspath(model), keep_layers, {**named, **load_kwargs})
    if found is None:
        logger.warning("%s is cut in memory, because %s.", os.fspath(model), reason)
    return found


def _find_tensors(name: str, keep_layers: Any, load_kwargs: dict[str, Any]) -> tuple[StreamedCheckpoint | None, str]:
    from hf_layerdrop.models.auto import find_class, find_config
    from hf_layerdrop.pruning.loading import adapted_base, load_shell

    if adapted_base(name, load_kwargs) is not None:
        return None, "it is a PEFT adapter"
    if getattr(find_config(name, load_kwargs), "quantization_config", None):
        return None, "it is quantized"
    with _without_bars():
        shell = load_shell(find_class(name, load_kwargs), name, keep_layers=keep_layers, **load_kwargs)
    if shell.converted:
        return None, shell.converted
    tensors: dict[str, StoredTensor] = {}
    for saved, weight in _saved_state(shell.model).items():
        stored = shell.stored.get(saved)
        if stored is None or stored.shape != tuple(weight.shape) or shell.dtypes[saved] != weight.dtype:
            return None, f"its model class saves {saved!r} otherwise than it is stored"
        tensors[saved] = stored
    return StreamedCheckpoint(shell.model, tensors), ""


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from showing how it loads and saves weights, which here it does not."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _saved_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the state that ``save_pretrained`` writes: without tied weights, under the names of the files."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(getattr(model, compat.NOT_SAVED.name) or ())
    state = {name: weight for name, weight in model.state_dict().items() if name not in ignored}
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
