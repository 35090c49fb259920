"""All that only a GPU can tell, part by part in eight minutes at most: tests marked gpu, then times and memory.

Each part is a process of its own, so that what one breaks or fills does no harm to the next, and writes its rows as
they come: a run that was cut short goes on where it stopped. ``--device cpu --short True`` runs every part on a CPU, on
tiny models: what it prints means nothing but that it works. What cannot run is a row that says why.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu._rows import markdown, read_rows, write_row

# In this order, with the share of the time that each may take at most: what is most worth knowing comes first.
PARTS = {"tests": 0.35, "steps": 0.5, "memory": 0.2, "inference": 0.25, "drafts": 0.25, "search": 0.25, "overhead": 0.2}


def run(
    device: str = "cuda",
    short: bool = False,
    parts: str = "all",
    output: str = "gpu-results",
    again: bool = False,
    minutes: float = 8.0,
) -> dict[str, Any]:
    """Run the parts that ``output`` does not hold yet; write ``results.json`` and ``results.md`` there.

    Args:
        device: Where the models are, as torch names it.
        short: Tiny models and few rounds: show that it works.
        parts: Names, separated by commas, or ``all``.
        output: The folder of results; what it holds is not run again.
        again: Begin anew.
        minutes: How long all of it may take.
    """
    chosen = list(PARTS) if parts == "all" else parts.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise SystemExit(f"There is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}.")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(folder, {"device": device, "short": short}, again)
    minutes = max(minutes, 40.0) if short else minutes  # beside other tests, whether it works is all that is asked
    deadline = time.monotonic() + 60 * minutes
    for part in chosen:
        _run_part(part, folder, device, short, min(deadline - time.monotonic(), 60 * minutes * PARTS[part]))
    rows = {part: read_rows(folder / f"{part}.jsonl") for part in PARTS}
    machine = json.loads((folder / "machine.json").read_text()) if (folder / "machine.json").exists() else {}
    results = {"device": device, "short": short, "machine": machine, "parts": rows}
    table = markdown(results)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "results.md").write_text(table)
    print(table)
    failed = [f"{part}: {row['what']}" for part in chosen for row in rows[part] if row.get("failed")]
    if failed:
        raise SystemExit(f"{len(failed)} failed: {'; '.join(failed)}; the rows of {folder / 'results.md'} say why.")
    measured = [row for part in chosen for row in rows[part] if not row.get("done")]
    return {
        "results": str(folder / "results.json"),
        "measured": sum("skipped" not in row for row in measured),
        "skipped": sum("skipped" in row for row in measured),
    }


def _same_run(folder: Path, settings: dict[str, Any], again: bool) -> None:
    """Refuse to go on with the results of another device or size; with ``again``, take the old ones away."""
    stored = folder / "settings.json"
    if again:
        for old in folder.glob("*.jsonl"):
            old.unlink()
    elif stored.exists() and json.loads(stored.read_text()) != settings:
        raise SystemExit(
            f"{folder} holds results of {stored.read_text()}, not of {settings}: take another --output, "
            "or --again True, which removes them."
        )
    stored.write_text(json.dumps(settings))


def _run_part(part: str, folder: Path, device: str, short: bool, seconds: float) -> None:
    """Run one part in a process of its own, unless it was done; a row tells what stopped it."""
    journal = folder / f"{part}.jsonl"
    rows = read_rows(journal)
    if rows and rows[-1].get("done"):
        return
    if seconds < 5:
        write_row(journal, {"what": "all of it", "skipped": "no time was left; the same command goes on here"})
        return
    print(f"> {part}, {seconds:.0f} s at most", flush=True)
    words = [sys.executable, "-m", "benchmarks.gpu.part", part, str(folder), device, *(["short"] if short else [])]
    try:
        code = subprocess.run(words, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        write_row(
            journal, {"what": "the rest", "skipped": f"over its time of {seconds:.0f} s; the same command goes on here"}
        )
        return
    if code:
        write_row(journal, {"what": "the rest", "failed": f"the process ended with {code}"})


def machine(device: str) -> dict[str, Any]:
    """Return what the results are of: device, memory, versions."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found
