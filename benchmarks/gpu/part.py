"""One part of the GPU's benchmark, in this process: ``python -m benchmarks.gpu.part NAME FOLDER DEVICE [short]``."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu._rows import read_rows, write_row

Measurement = tuple[str, Callable[[], dict[str, Any]]]


def main(name: str, folder: str, device: str, *short: str) -> None:
    """Take the measurements of one part that its journal lacks; a row for each, also for what could not be taken."""
    journal = Path(folder) / f"{name}.jsonl"
    if reason := missing_device(device):
        write_row(journal, {"what": "all of it", "skipped": reason})
        return
    from benchmarks.gpu import machine

    (Path(folder) / "machine.json").write_text(json.dumps(machine(device)))
    known = {row["what"] for row in read_rows(journal) if not (row.get("failed") or row.get("skipped"))}
    measurements: Iterator[Measurement] = import_module(f"benchmarks.gpu.{name}").measurements(device, bool(short))
    complete = True
    for what, measure in measurements:
        if what not in known:
            row = _row(what, measure)
            complete = complete and "failed" not in row
            write_row(journal, row)
    if complete:
        write_row(journal, {"what": "done", "done": True})


def missing_device(device: str) -> str | None:
    """Return why nothing can run on ``device``, or None; a torch below the package's floor is said loudly, and used."""
    import torch

    _warn_of_old_torch(torch.__version__)
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    if kind == "cuda" and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
        return f"torch {torch.__version__}, built for {built}, sees no CUDA device"
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each backend has errors of its own
        return f"{device} cannot be used: {str(error).partition(chr(10))[0]}"
    return None


def _warn_of_old_torch(version: str) -> None:
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("hf-layerdrop") or ()]
    except PackageNotFoundError:  # run from the source tree
        return
    for requirement in wanted:
        if requirement.name == "torch" and not requirement.specifier.contains(version, prereleases=True):
            print(f"!!! torch {version} is outside of {requirement.specifier}: measured all the same.", flush=True)


def _row(what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Take one measurement; memory that does not suffice skips it, and any other error fails it, by name."""
    import torch

    from benchmarks.gpu._device import Skipped

    try:
        row = {"what": what, **measure()}
    except Skipped as reason:
        row = {"what": what, "skipped": str(reason)}
    except torch.OutOfMemoryError as error:
        row = {"what": what, "skipped": f"out of memory: {str(error).partition('.')[0]}"}
    except Exception as error:  # the rest of the part runs
        traceback.print_exc()
        row = {"what": what, "failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"  {what}: {row.get('skipped') or row.get('failed') or 'taken'}", flush=True)
    return row


if __name__ == "__main__":
    main(*sys.argv[1:])
