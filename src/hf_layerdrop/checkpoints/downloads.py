"""The kept tensors of a model on the Hub, and no others: fetched once, in a repository's folder of their own.

Shards without a kept tensor are not downloaded; of the others only the bytes of the kept tensors are, in requests that
join neighbours. A server without ranges is asked for those files whole. The folder lies in the Hub's cache, in its
form, so that its tools list and delete it (``hf cache``, `scan_cache_dir`); but no repository can have its name: in
the real one's, plain transformers would take it for the whole model. It appears when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.file_download import repo_folder_name

from hf_layerdrop.checkpoints.headers import (
    CONFIG_NAME,
    INDEX_NAME,
    PICKLE_NAMES,
    WEIGHTS_NAME,
    TensorInfo,
    bits_of,
    check_uploaded,
    find_placed,
    only_pickle,
    read_checkpoint,
    read_header,
    read_index,
)
from hf_layerdrop.checkpoints.http_ranges import RangesIgnored, RemoteFile
from hf_layerdrop.checkpoints.unreadable import hub_answering
from hf_layerdrop.errors import CheckpointError, said_by

logger = logging.getLogger(__name__)

# Picks the kept ones among the tensors of a checkpoint, by name, and gives them their new names.
Choose = Callable[[Mapping[str, Any]], Mapping[str, Any]]
# Gives the bytes of a file from one position to another, in chunks.
Stream = Callable[[int, int], Iterable[bytes | memoryview]]

_OWN = "hf_layerdrop--layers"  # makes a name of three parts or more, and those of the Hub have two
_LAYOUT = 2  # of what is kept; a change makes older folders unknown
_AT_ONCE = 8  # shards
_ADAPTER = "adapter_config.json"
_BESIDE = (CONFIG_NAME, "generation_config.json")


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
        found = try_to_load_from_cache(self.repo_id, self.path(file), cache_dir=self.cache_dir, revision=self.commit)
        return found if isinstance(found, str) else None

    def download(self, file: str) -> str:
        """Return where the Hub's cache has a whole file, after a download if need be."""
        return hf_hub_download(
            self.repo_id, self.path(file), revision=self.commit, cache_dir=self.cache_dir, token=self.token
        )

    def files(self) -> set[str]:
        """List the files of the repository."""
        with hub_answering(self.repo_id):
            info = HfApi(token=self.token).model_info(self.repo_id, revision=self.commit)
        return {sibling.rfilename for sibling in info.siblings or ()}

    def open(self, file: str) -> tuple[dict[str, TensorInfo], Stream]:
        """Return the header of a weight file, and what reads parts of it, wherever it is."""
        local = None if self.force_download else self.cached(file)
        if local is None:
            remote = RemoteFile(self.repo_id, self.path(file), self.commit, self.token)
            try:
                return remote.read_header(), remote.stream
            except RangesIgnored:
                logger.warning("The Hub has no range requests: %s of %s is downloaded whole.", file, self.repo_id)
                local = self.download(file)
        return read_header(local), partial(_read_local, local)


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
    facts = {"repo_id": model.repo_id, "commit": model.commit, "subfolder": model.subfolder, "layout": _LAYOUT}
    folder = _folder(model, {**facts, "kept": {path: list(layers) for path, layers in kept.items()}})
    if not model.force_download and (_is_whole(folder) or _has_all(model)):
        return folder if folder.exists() else None
    if model.local_files_only or constants.is_offline_mode():
        return None
    try:
        return _fetch(model, folder, choose)
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"The kept layers of {model.repo_id!r} could not be fetched from the Hub ({said_by(error)}), so "
            "nothing was kept: check the network and the space on the disk, and call again."
        ) from error


def _folder(model: HubModel, facts: Mapping[str, Any]) -> Path:
    """Return where the kept tensors lie: as a revision, whose hash no other one has, not even the model's commit."""
    cache = Path(model.cache_dir or constants.HF_HUB_CACHE).expanduser()
    repo = f"{repo_folder_name(repo_id=model.repo_id, repo_type='model')}--{_OWN}"
    return cache / repo / "snapshots" / hashlib.sha1(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _ref(folder: Path) -> Path:
    """Return the file that points to a folder, without which `hf cache prune` would take it for a leftover."""
    return folder.parents[1] / "refs" / folder.name[:12]


def _is_whole(folder: Path) -> bool:
    """Tell whether a folder is there and undamaged; a damaged one is taken away, to be fetched again."""
    if not folder.exists():
        return False
    try:
        read_checkpoint(folder)
    except CheckpointError as error:
        logger.warning("The kept layers in %s are fetched again: %s", folder, error)
        _ref(folder).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_if_empty(folder.parents[1])
        return False
    return True


def _has_all(model: HubModel) -> bool:
    """Tell whether the Hub's cache has the whole model already."""
    if model.cached(WEIGHTS_NAME):
        return True
    index = model.cached(INDEX_NAME)
    return index is not None and all(model.cached(shard) for shard in set(read_index(Path(index)).values()))


def _fetch(model: HubModel, folder: Path, choose: Choose) -> Path | None:
    files = model.files()
    if model.path(_ADAPTER) in files or not files & set(map(model.path, (WEIGHTS_NAME, INDEX_NAME, *PICKLE_NAMES))):
        return None
    tensors, streams = find_tensors(model, files, choose)
    with _appearing(folder, replace=model.force_download) as new:
        _write_weights(new / WEIGHTS_NAME, tensors, streams)
        for file in _BESIDE:
            if model.path(file) in files:
                shutil.copyfile(model.download(file), new / file)
    return folder


def find_tensors(
    model: HubModel, files: Collection[str], choose: Choose = dict
) -> tuple[Mapping[str, TensorInfo], Mapping[str, Stream]]:
    """Find chosen tensors of a model on the Hub, of which no other shards are asked for their headers.

    Returns:
        The tensors by their new names, and what reads the files in which they lie.

    Raises:
        CheckpointError: The files are corrupt, incomplete, or a pickle.
    """
    if model.path(WEIGHTS_NAME) in files:
        tensors, stream = model.open(WEIGHTS_NAME)
        return choose(tensors), {WEIGHTS_NAME: stream}
    if model.path(INDEX_NAME) not in files:
        raise CheckpointError(only_pickle(model.repo_id))
    weight_map = read_index(Path(model.download(INDEX_NAME)))
    needed = sorted(set(choose(weight_map).values()))
    check_uploaded(map(model.path, needed), files, model.repo_id)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        opened = dict(zip(needed, pool.map(model.open, needed), strict=True))
    placed = {name: shard for name, shard in weight_map.items() if shard in opened}
    found = find_placed(
        placed, {shard: tensors for shard, (tensors, _) in opened.items()}, PurePosixPath(model.repo_id)
    )
    return choose({name: found.get(name) for name in weight_map}), {shard: opened[shard][1] for shard in needed}


def _write_weights(path: Path, tensors: Mapping[str, TensorInfo], streams: Mapping[str, Stream]) -> None:
    """Copy tensors into one file under the names that they are given by, piece by piece."""
    with path.open("wb") as target:
        places = _begin_file(target, tensors)
        for names in _neighbours(tensors):
            first, last = tensors[names[0]], tensors[names[-1]]
            chunks, rest = iter(streams[first.file](first.begin, last.end)), memoryview(b"")
            for name in names:
                target.seek(places[name])
                missing = tensors[name].nbytes
                while missing:
                    rest = rest or memoryview(next(chunks))
                    written = target.write(rest[:missing])
                    rest, missing = rest[written:], missing - written


def _begin_file(target: BinaryIO, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Write the header of a safetensors file, and return where in it each tensor belongs."""
    order = sorted(tensors, key=lambda name: -bits_of(tensors[name].dtype))  # so all are aligned, as torch needs it
    ends = dict(zip(order, accumulate(tensors[name].nbytes for name in order), strict=True))
    begins = {name: ends[name] - tensors[name].nbytes for name in order}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name in order:
        tensor = tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begins[name], ends[name]]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    target.write(len(raw).to_bytes(8, "little") + raw)
    target.truncate(8 + len(raw) + max(ends.values(), default=0))
    return {name: 8 + len(raw) + begin for name, begin in begins.items()}


def _neighbours(tensors: Mapping[str, TensorInfo]) -> list[list[str]]:
    """Group tensors that lie side by side in one file, each group in order."""
    groups: list[list[str]] = []
    for name in sorted(tensors, key=lambda name: (tensors[name].file, tensors[name].begin, tensors[name].end)):
        before = tensors[groups[-1][-1]] if groups else None
        if before and (before.file, before.end) == (tensors[name].file, tensors[name].begin):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _read_local(file: str, begin: int, end: int) -> Iterator[memoryview]:
    with Path(file).open("rb") as content:
        yield memoryview(mmap(content.fileno(), 0, access=ACCESS_READ))[begin:end]


@contextmanager
def _appearing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Give a new folder that takes its name when the block ends without an error; until then no tool sees it."""
    repo = folder.parents[1]
    new = repo / f".new-{uuid.uuid4().hex[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir()
    try:
        yield new
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same content, and may be reading it
                raise
        _ref(folder).parent.mkdir(exist_ok=True)
        _ref(folder).write_text(folder.name, encoding="ascii")
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _remove_if_empty(repo)


def _remove_if_empty(repo: Path) -> None:
    for part in (repo / "refs", repo / "snapshots", repo):
        with suppress(OSError):  # not there, or not empty
            part.rmdir()
