"""The kept tensors of a model on the Hub, and no others: fetched once, in a folder of our own beside the Hub's cache.

Shards without a kept tensor are not downloaded; of the others only the bytes of the kept tensors are, in requests that
join neighbours. A server without ranges is asked for those files whole. The folder appears when it is complete; it is
never inside a repository's snapshot, where plain transformers would take it for the whole model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_layerdrop.checkpoints.headers import (
    CONFIG_NAME,
    INDEX_NAME,
    PICKLE_NAMES,
    WEIGHTS_NAME,
    check_uploaded,
    only_pickle,
    read_index,
    read_tensors,
)
from hf_layerdrop.checkpoints.http_ranges import RangesIgnored, RemoteFile
from hf_layerdrop.checkpoints.weight_files import StoredTensor, Stream, read_stored, stream_local, write_weights
from hf_layerdrop.errors import CheckpointError, said_by

logger = logging.getLogger(__name__)

# Picks the kept ones among the tensors of a checkpoint, by name, and gives them their new names.
Choose = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_HOME = "hf_layerdrop"
_LAYOUT = 1  # of what is kept; a change makes older folders unknown
_ADAPTER = "adapter_config.json"
_BESIDE = (CONFIG_NAME, "generation_config.json")
_SPARE = 0.01  # share of bytes that may be fetched in vain, to join neighbouring requests


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit, and how ``from_pretrained`` was told to get at it."""

    repo_id: str
    commit: str
    subfolder: str = ""
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def path(self, file: str) -> str:
        """Return the path of a file in the repository."""
        return f"{self.subfolder}/{file}" if self.subfolder else file

    def cached(self, file: str) -> str | None:
        """Return where the Hub's cache has a whole file, if it has it."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, self.path(file), cache_dir=self.cache_dir, revision=self.commit)
        return found if isinstance(found, str) else None

    def download(self, file: str) -> str:
        """Return where the Hub's cache has a whole file, after a download if need be."""
        from huggingface_hub import hf_hub_download

        return hf_hub_download(
            self.repo_id, self.path(file), revision=self.commit, cache_dir=self.cache_dir, token=self.token
        )

    def files(self) -> set[str]:
        """List the files of the repository."""
        from huggingface_hub import HfApi

        info = HfApi(token=self.token).model_info(self.repo_id, revision=self.commit)
        return {sibling.rfilename for sibling in info.siblings or ()}


def fetch_kept(model: HubModel, kept: Mapping[str, Sequence[int]], choose: Choose) -> Path | None:
    """Return a folder that holds the kept tensors of a model under their new names, with the config of the whole.

    Args:
        model: Where the model is.
        kept: The kept layers of each stack, by its path; a second call with the same ones makes no request.
        choose: Picks and renames the kept tensors.

    Returns:
        The folder; or None if the Hub's cache has the whole model, or there are no safetensors to take parts of, or it
        may not be asked for: then transformers' own way is as good, or has the better error.

    Raises:
        CheckpointError: The files are corrupt, changed while they were fetched, or could not be fetched.
    """
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HTTPError

    folder = _folder(model, kept)
    if not model.force_download and (_is_whole(folder) or _has_all(model)):
        return folder if folder.exists() else None
    if model.local_files_only or is_offline_mode():
        return None
    try:
        return _fetch(model, folder, kept, choose)
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"The kept layers of {model.repo_id!r} could not be fetched from the Hub ({said_by(error)}), so "
            "nothing was kept: check the network and the space on the disk, and call again."
        ) from error


def _folder(model: HubModel, kept: Mapping[str, Sequence[int]]) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    beside = Path(model.cache_dir or constants.HF_HUB_CACHE).expanduser().parent
    wanted = {"layout": _LAYOUT, "subfolder": model.subfolder, "kept": {path: list(kept[path]) for path in kept}}
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    return beside / _HOME / repo_folder_name(repo_id=model.repo_id, repo_type="model") / model.commit / key


def _is_whole(folder: Path) -> bool:
    """Tell whether a folder is there and undamaged; a damaged one is taken away, to be fetched again."""
    if not folder.exists():
        return False
    try:
        read_tensors(folder)
    except CheckpointError as error:
        logger.warning("The kept layers in %s are fetched again: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _has_all(model: HubModel) -> bool:
    """Tell whether the Hub's cache has the whole model already."""
    if model.cached(WEIGHTS_NAME):
        return True
    index = model.cached(INDEX_NAME)
    return index is not None and all(model.cached(shard) for shard in set(read_index(Path(index)).values()))


def _fetch(model: HubModel, folder: Path, kept: Mapping[str, Sequence[int]], choose: Choose) -> Path | None:
    files = model.files()
    if model.path(_ADAPTER) in files:
        return None
    if not files & {model.path(WEIGHTS_NAME), model.path(INDEX_NAME)}:
        if files & set(map(model.path, PICKLE_NAMES)):
            raise CheckpointError(only_pickle(model.repo_id))
        return None
    weight_map = None if model.path(WEIGHTS_NAME) in files else read_index(Path(model.download(INDEX_NAME)))
    with _appearing(folder) as new:
        try:
            _write(_Weights(model, weight_map, choose, files), new)
        except RangesIgnored:
            logger.warning("The Hub has no range requests: whole files of %s are downloaded.", model.repo_id)
            _write(_Weights(model, weight_map, choose, files, whole=True), new)
        for file in _BESIDE:
            if model.path(file) in files:
                shutil.copyfile(model.download(file), new / file)
        facts = {"repo_id": model.repo_id, "commit": model.commit, "kept": {path: list(kept[path]) for path in kept}}
        (new / "kept.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


class _Weights:
    """The kept tensors, and what reads the files in which they lie."""

    def __init__(
        self,
        model: HubModel,
        weight_map: Mapping[str, str] | None,
        choose: Choose,
        files: Collection[str],
        *,
        whole: bool = False,
    ) -> None:
        self._model, self._whole = model, whole
        self._streams: dict[str, Stream] = {}
        if weight_map is None:
            self.tensors: Mapping[str, StoredTensor] = choose(self._open(WEIGHTS_NAME))
            return
        needed = sorted(set(choose(weight_map).values()))
        check_uploaded(map(model.path, needed), files, model.repo_id)
        shards = {shard: self._open(shard) for shard in needed}
        for name, shard in weight_map.items():
            if shard in shards and name not in shards[shard]:
                raise CheckpointError(
                    f"The file {shard!r} of {model.repo_id!r} lacks the tensor {name!r} that {INDEX_NAME} places "
                    "there: the repository is damaged, so tell its owner, or choose another revision."
                )
        self.tensors = choose({name: shards.get(shard, {}).get(name) for name, shard in weight_map.items()})

    def stream(self, file: str, begin: int, end: int) -> Iterator[bytes]:
        """Read a part of a file, wherever it is."""
        yield from self._streams[file](file, begin, end)

    def _open(self, file: str) -> dict[str, StoredTensor]:
        local = self._model.download(file) if self._whole else self._model.cached(file)
        if local is not None and not (self._model.force_download and not self._whole):
            self._streams[local] = stream_local
            return read_stored(local)
        path = self._model.path(file)
        remote = RemoteFile(self._model.repo_id, path, self._model.commit, self._model.token)
        self._streams[path] = remote.stream
        return remote.read_header()


def _write(weights: _Weights, folder: Path) -> None:
    kept = sum(tensor.nbytes for tensor in weights.tensors.values())
    write_weights(folder, weights.tensors, weights.stream, spare=int(_SPARE * kept))


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes its name when the block ends without an error."""
    new = folder.with_name(f".{folder.name}.new-{uuid.uuid4().hex[:8]}")
    new.mkdir(parents=True)
    try:
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            new.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
