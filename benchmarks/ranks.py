"""Exhaustive search of 6 out of 12 layers by several processes, against one: its time, and that of each rank.

Each process runs the search of `search_layers` on the same BERT-shaped model with random weights and the same batches,
with one thread. The clock of the computation is each process's own, so that it counts beside other work too; the wall
clock needs as many idle cores as there are ranks. Both records have to be the same.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ddp import _free_port


def run(
    ranks: int = 2,
    layers: int = 12,
    keep: int = 6,
    hidden: int = 128,
    batches: int = 2,
    rows: int = 24,
    length: int = 64,
    strategy: str = "exhaustive",
    seed: int = 0,
) -> dict[str, Any]:
    """Search with one process, then with several."""
    settings = {
        "layers": layers,
        "keep": keep,
        "hidden": hidden,
        "batches": batches,
        "rows": rows,
        "length": length,
        "strategy": strategy,
        "seed": seed,
    }
    alone, together = _search(1, settings), _search(ranks, settings)
    dearest = max(together, key=lambda rank: rank["cpu_seconds"])
    return {
        "ranks": ranks,
        **settings,
        "cpu_seconds_alone": alone[0]["cpu_seconds"],
        "cpu_seconds_by_rank": [rank["cpu_seconds"] for rank in together],
        "share_of_cpu_seconds": dearest["cpu_seconds"] / alone[0]["cpu_seconds"],
        "seconds_alone": alone[0]["seconds"],
        "seconds": together[0]["seconds"],
        "share_of_seconds": together[0]["seconds"] / alone[0]["seconds"],
        "same_record": all(rank["record"] == alone[0]["record"] for rank in together),
    }


def _search(ranks: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each rank found, and took."""
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (ranks, _free_port(), settings, folder), nprocs=ranks)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(rank: int, ranks: int, port: int, settings: dict[str, Any], folder: str) -> None:
    """Be one of the processes, as a launcher starts it."""
    from benchmarks._rounds import CLOCKS
    from benchmarks.search import _data, _model

    size = settings
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate takes as many as there are cores
    import torch

    from hf_layerdrop.evaluation.ranks import processes
    from hf_layerdrop.injection.ranks.ddp import leave_ranks
    from hf_layerdrop.search.search import search_layers

    torch.set_num_threads(1)
    model = _model(size["layers"], size["hidden"], size["seed"])
    data = _data(size["batches"], size["rows"], size["length"], size["seed"])
    with torch.no_grad():
        model(**data[0])
    processes()  # the ranks have met before the clocks start
    before = {name: clock() for name, clock in CLOCKS.items()}
    found = search_layers(
        model,
        data,
        test_dataset=data[:1],
        metric="accuracy",
        strategy=size["strategy"],
        depth=size["keep"],
        progress=False,
    )
    took = {name: clock() - before[name] for name, clock in CLOCKS.items()}
    said = {"seconds": took["wall"], "cpu_seconds": took["cpu"], "record": found.to_dict()}
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    leave_ranks()
