"""Note what was measured of a checkpoint in its recommended sets, and how, so that it can be measured so again.

The table lies in the checkpoint's folder and goes wherever that goes. Paths of local files are nobody's business: they
lie in ``.cache/huggingface`` of the folder, which no upload of the Hub's client takes along.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.outputs import write_whole
from hf_layerdrop.checkpoints.recommended import MeasuredWith, RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import RECOMMENDED_FILE, read_recommended, write_recommended
from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.errors import CheckpointError, KeepLayersError, said_by
from hf_layerdrop.results.recommended import as_recommended
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import evenly_spread
from hf_layerdrop.search.objective import find_objective
from hf_layerdrop.tasks.task import TaskData

if TYPE_CHECKING:
    from transformers import Trainer

FILES = Path(".cache", "huggingface", "layerdrop_files.json")  # below a checkpoint's folder
_LONGEST = 100_000  # bytes
_CHUNK = 2**20


def note_recommended(
    folder: str | os.PathLike[str],
    results: Sequence[SubNetworkResult],
    trainer: Trainer,
    data: TaskData,
    *,
    chosen_by: Mapping[str, Any] | None = None,
) -> str | None:
    """Add measured sub-networks to the recommended sets of a checkpoint folder; say what was written.

    What was measured otherwise (other data, lengths or weights) gives way. Where the folder cannot be written, a
    warning says so, and nothing is lost but the note.

    Args:
        folder: The checkpoint; nothing is done for one on the Hub.
        results: The records, of the task's validation sets.
        trainer: What measured them.
        data: The encoded data.
        chosen_by: A set of layers by stack, and under ``strategy`` what chose it; others are ``spread`` or ``given``.
    """
    from hf_layerdrop.architectures.stacks import depths_of

    folder = Path(folder)
    if not folder.is_dir() or not results:
        return None
    depths = depths_of(trainer.accelerator.unwrap_model(trainer.model))
    metric = data.task.headline + data.task.metric_suffixes[0]
    machine = machine_of(trainer)
    try:
        table = RecommendedSets(
            depths=depths,
            metric=metric,
            greater_is_better=find_objective(metric, {metric: 0.0}, None).greater_is_better,
            measured_with=measured_with(data, trainer),
            sets=[as_recommended(one, _strategy(one, depths, chosen_by), machine) for one in _distinct(results)],
        )
        earlier = _earlier(folder)
        joined = table.joined(earlier, same_weights=noted_files(folder).get("weights") == _weights(folder))
        file = write_recommended(joined, folder)
        _note_files(folder, data)
    except (OSError, ValueError) as error:  # a metric of a name that cannot be one, too
        warnings.warn(f"{str(folder / RECOMMENDED_FILE)!r} could not be written ({said_by(error)}).", stacklevel=2)
        return None
    replaced = earlier is not None and joined is table
    return f"Wrote {file}" + (", in place of sets that were measured otherwise" if replaced else "")


def measured_with(data: TaskData, trainer: Trainer) -> MeasuredWith:
    """Say how encoded data is measured, without a path of this machine."""
    task, generates = data.task, data.task.generation is not None
    local = bool(data.files) or (task.hub_name is not None and Path(task.hub_name).is_dir())
    split, *more = data.validation
    beams = getattr(trainer.args, "generation_num_beams", None)
    return MeasuredWith(
        task=task.name,
        dataset=f"local-{task.name}" if local else task.hub_name,
        config=task.hub_config,
        split=split,
        more_splits=dict(zip(task.metric_suffixes[1:], more, strict=False)),
        digest=_digest(data.files)
        if data.files
        else _listing(Path(task.hub_name))
        if local and task.hub_name
        else None,
        text_columns=list(task.text_columns),
        label_column=task.label_column or None,
        max_length=data.max_length,
        max_target_length=data.max_target_length if generates else None,
        num_beams=(beams or task.generation.num_beams) if task.generation is not None else None,
    )


def noted_files(folder: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the local files that a checkpoint was measured on, ``validation_file`` and ``dataset``; empty for none.

    ``weights`` tells the weights that were measured.
    """
    try:
        noted = read_json(Path(folder) / FILES, _LONGEST)
    except Unreadable:
        return {}
    return noted if isinstance(noted, dict) else {}


def _note_files(folder: Path, data: TaskData) -> None:
    name = data.task.hub_name
    files: dict[str, Any] = {"validation_file": [os.path.abspath(file) for file in data.files]} if data.files else {}
    if not data.files and name is not None and Path(name).is_dir():
        files["dataset"] = os.path.abspath(name)
    notes = folder / FILES
    if not notes.parent.resolve().is_relative_to(folder.resolve()):  # by a link, which a stranger's folder may hold
        return
    write_whole(notes, json.dumps({**files, "weights": _weights(folder)}, indent=1))
    if not (ignored := notes.with_name(".gitignore")).exists():
        write_whole(ignored, "*\n")


def _weights(folder: Path) -> str:
    """Tell the weights of a folder, as long as they lie there as they are."""
    files = [file for ending in ("safetensors", "bin") for file in sorted(folder.glob(f"*.{ending}"))]
    stamps = [(file.name, found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()]]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def forget_recommended(folder: Path) -> None:
    """Delete the recommended sets of a checkpoint folder whose weights are about to be replaced."""
    if _earlier(folder) is not None:
        (folder / RECOMMENDED_FILE).unlink(missing_ok=True)


def _earlier(folder: Path) -> RecommendedSets | None:
    """Read the recommended sets of a folder; a file of their name that is none, or of a later version, is set aside."""
    try:
        return read_recommended(folder)
    except KeepLayersError:
        return None
    except CheckpointError:  # it may be anyone's
        file = folder / RECOMMENDED_FILE
        if not file.is_dir():
            names = (file.with_name(f"{file.name}.{number}") for number in count(1))
            aside = file.rename(next(name for name in names if not os.path.lexists(name)))
            warnings.warn(f"{str(file)!r} was no table that could be used, and is {aside.name!r} now.", stacklevel=4)
        return None


def _distinct(results: Sequence[SubNetworkResult]) -> list[SubNetworkResult]:
    return list({result.keep_layers: result for result in results}.values())


def _strategy(result: SubNetworkResult, depths: Mapping[str, int], chosen_by: Mapping[str, Any] | None) -> str:
    if chosen_by and dict(result.keep_layers) == {stack: tuple(chosen_by[stack]) for stack in depths}:
        return str(chosen_by["strategy"])
    spread = all(kept == evenly_spread(len(kept), depths[stack]) for stack, kept in result.keep_layers.items())
    return "spread" if spread else "given"


def _digest(files: Sequence[str]) -> str:
    """Tell local files by what they hold."""
    digest = hashlib.sha256()
    for name in files:
        with open(name, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _listing(folder: Path) -> str:
    """Tell a local data set, which may be too large to read for it, by its files and their sizes."""
    files = sorted((str(file.relative_to(folder)), file.stat().st_size) for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def machine_of(trainer: Trainer) -> str:
    """Say what a Trainer measures times on: the device, its threads, and the rows of a batch."""
    import torch

    device = trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {trainer.args.eval_batch_size} rows a batch"


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        if names := [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    return platform.processor() or platform.machine()
