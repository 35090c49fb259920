"""Where a model comes from: loading the sub-network, and what lies beside the weights."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.card_metadata import said_by_card
from hf_layerdrop.checkpoints.companions import (
    COMPANIONS,
    SENTENCES,
    check_modules,
    companion_files,
    further_companions,
    sentence_task,
)
from hf_layerdrop.checkpoints.headers import CONFIG_NAME
from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.tokenizers import PROCESSOR_FILES, copied_processor_files, none_beside, vocabulary_files
from hf_layerdrop.checkpoints.unreadable import unreadable
from hf_layerdrop.errors import CheckpointError, HubError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_FROM_SOURCE = ("token", "cache_dir", "local_files_only", "force_download")


class _Savable(Protocol):
    def save_pretrained(self, save_directory: str | os.PathLike[str], /) -> object: ...


Processor: TypeAlias = _Savable | Literal[False]
"""A tokenizer or processor, of any kind that transformers has; False for none."""


class Source:
    """Where a model came from: its files beside the weights, and what its card says."""

    def __init__(self, name: str, revision: str | None, hub_kwargs: Mapping[str, Any], subfolder: str) -> None:
        self.is_folder = Path(name).is_dir()
        # absolute, so that a folder is never mistaken for a Hub id; the card shows the last name alone
        self.name = str(Path(name).resolve()) if self.is_folder else name
        self.revision = revision
        self.failure: Exception | None = None  # why the Hub gave nothing
        self.root = Path(name) if self.is_folder else self._download(hub_kwargs, subfolder)
        self.folder = self.root / subfolder if self.root else None

    def _download(self, hub_kwargs: Mapping[str, Any], subfolder: str) -> Path | None:
        usual = [*PROCESSOR_FILES, *COMPANIONS, CONFIG_NAME]
        patterns = [*usual, *(f"*/{pattern}" for pattern in usual), "README.md"]
        try:
            with bounded_waits():
                root = Path(snapshot_download(self.name, revision=self.revision, allow_patterns=patterns, **hub_kwargs))
                folder = root / subfolder
                named = [*vocabulary_files(folder), *further_companions(folder)]
                more = [pattern for pattern in named if not any(filter_repo_objects([pattern], allow_patterns=usual))]
                if more:
                    within = [str(PurePosixPath(subfolder, pattern)) for pattern in more]
                    snapshot_download(self.name, revision=root.name, allow_patterns=within, **hub_kwargs)
        except HubError:
            raise
        except Exception as error:  # an answer that is none of the Hub's raises anything
            logger.debug("No files of %s beside its weights: %s", self.name, type(error).__name__)
            self.failure = error
            return None
        self.revision = root.name  # the cache names a snapshot by its commit
        return root

    def processor_files(self) -> list[Path]:
        """List the files of tokenizer and processors; a link that leads out of the checkpoint is refused."""
        return [] if self.folder is None else copied_processor_files(self.folder)

    def companion_files(self) -> list[Path]:
        """List what else lies beside the weights and belongs to the model."""
        return [] if self.folder is None else companion_files(self.folder)

    def card_metadata(self) -> dict[str, Any]:
        """Read what the source's card says that goes for its sub-networks too, and of which other library it is."""
        task = sentence_task(self.folder) if self.folder else None
        said = said_by_card(self.root / "README.md") if self.root else {}
        return {**said, **({"library_name": SENTENCES, "pipeline_tag": task} if task else {})}


def find_source(
    model: PreTrainedModel | str | os.PathLike[str], revision: str | None, load_kwargs: Mapping[str, Any]
) -> Source | None:
    """Find out where a model came from; a model in memory may have no source."""
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", None)
    if not name:
        return None
    hub_kwargs = {key: load_kwargs[key] for key in _FROM_SOURCE if load_kwargs.get(key) is not None}
    if not isinstance(model, str | os.PathLike):
        revision = revision or _commit_of(model)
    return Source(name, revision, hub_kwargs, load_kwargs.get("subfolder") or "")


def check_processors(source: Source | None, model: Any, tokenizer: Any) -> None:
    """Refuse a checkpoint without a tokenizer, unless that is wanted: what is saved would not serve in a pipeline.

    A model in memory need not come from anywhere, so that it only gets a warning.

    Raises:
        CheckpointError: None was given, and none lies beside the weights, one of its files is a link that leads out of
            the checkpoint, or there is no such checkpoint.
    """
    if tokenizer is not None or (source and source.processor_files()):
        return
    if isinstance(model, str | os.PathLike):
        if source and source.failure:
            raise CheckpointError(unreadable(source.name, source.failure)) from source.failure
        raise CheckpointError(none_beside(os.fspath(model)))
    logger.warning("No tokenizer was found: the checkpoint is saved without one (pass tokenizer=).")


def check_cut(source: Source | None, keep_layers: Any) -> None:
    """Refuse a cut of a model beside which something counts its layers.

    Raises:
        UnsupportedModelError: If something does.
    """
    if source is not None and source.folder is not None and keep_layers is not None:
        check_modules(source.folder)


def load_pruned(
    model: PreTrainedModel | str | os.PathLike[str],
    keep_layers: Any,
    revision: str | None,
    load_kwargs: Mapping[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    """Load the sub-network, or cut it out of a copy; return also what to save of it, if that is not its whole state.

    Raises:
        CheckpointError: A kept layer or the base model lacks a weight, or one of its other kinds.
    """
    from transformers import PreTrainedModel

    from hf_layerdrop.injection.open_blocks import turn_of_thread
    from hf_layerdrop.pruning.prune import prune_layers

    if isinstance(model, str | os.PathLike):
        return _load_named(
            os.fspath(model), keep_layers, {**load_kwargs, **({"revision": revision} if revision else {})}
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"A {type(model).__name__} is neither a transformers model nor the name of one: pass a PreTrainedModel "
            "(merge adapters first, with merge_and_unload), a folder or a Hub id."
        )
    if revision is not None or load_kwargs:
        unused = ", ".join([*load_kwargs, *(["revision"] if revision is not None else [])])
        raise TypeError(f"{unused} say how to load a model by name, but the model is in memory already.")
    with turn_of_thread(model):  # or it would be a copy of another thread's sub-network
        pruned = copy.deepcopy(model)
    prune_layers(pruned, keep_layers, source=_shown(model.name_or_path), revision=_commit_of(model))
    return pruned, None


def _load_named(name: str, keep_layers: Any, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    from hf_layerdrop.architectures.stacks import find_stacks
    from hf_layerdrop.checkpoints.adapter_files import adapted_base
    from hf_layerdrop.checkpoints.leftovers import saved_state
    from hf_layerdrop.checkpoints.weight_names import WeightNames
    from hf_layerdrop.models.auto import load_fitting
    from hf_layerdrop.models.mixin import inject
    from hf_layerdrop.pruning.weight_checks import check_base_is_whole, check_layers_are_whole

    layerdrop, model_class = options.pop("layerdrop", None), options.pop("model_class", None)
    leftovers: dict[str, Any] = {}
    loaded, info = load_fitting(name, keep_layers, model_class, leftovers, options)
    if keep_layers is not None and adapted_base(name, options) is None:
        names, kept = WeightNames(loaded, find_stacks(loaded)), loaded.config.hf_layerdrop["keep_layers"]
        places = filter(None, map(names.layer_of, info["missing_keys"]))
        check_layers_are_whole((stack, kept[stack][layer], rest) for stack, layer, rest in places)
    check_base_is_whole(loaded, info["missing_keys"])
    if layerdrop is not None:
        inject(loaded, layerdrop, options)
    given = any(options.get(dtype) not in (None, "auto") for dtype in ("dtype", "torch_dtype"))
    return loaded, saved_state(loaded, info, leftovers, loaded.dtype if given else None)


def _commit_of(model: Any) -> str | None:
    """Return the commit of the Hub that a model in memory was loaded from."""
    return getattr(getattr(model, "config", None), compat.COMMIT.name, None)


def _shown(name: str) -> str | None:
    """Return what may be written into a checkpoint that others will read: a Hub id, or the last name of a folder.

    Also of a folder that is not there any more: the rest of a path is nobody's business.
    """
    if not name or Path(name).is_dir():
        return Path(name).resolve().name if name else None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return PurePath(name.replace("\\", "/")).name or None
    return name
