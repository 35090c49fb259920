"""Bytes and time of loading some layers of a model on the Hub, beside a download of all of it.

The Hub is the tests' server on the loopback, so that times say what the two ways cost besides a network, whose time is
in proportion to the bytes. ``keep_layers`` is called for the first time, a second time, and once more with an empty
cache and connections that break off within the weights. All must have the same weights.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._checkpoints import bert_classifier

REPO = "alice/deep"
WEIGHTS = r"/resolve/.*safetensors$"
SMALL_REQUESTS = 2  # the length of the header and the header, which end before a connection is to break off
FIRST, SECOND, CUT_OFF, WHOLE = "keep_layers", "keep_layers, again", "keep_layers, cut off", "download, then cut"


def run(layers: int = 24, hidden: int = 1024, keep: int = 6, short: bool = False) -> dict[str, Any]:
    """Measure it once; ``short`` shows in seconds that it works, and nothing else."""
    layers, hidden, keep = (8, 128, 3) if short else (layers, hidden, keep)
    sys.path.append(str(Path(__file__).parents[1] / "tests/support"))  # the server is the tests'
    from hub_server import HubServer

    with tempfile.TemporaryDirectory() as temporary, HubServer() as hub:
        home = Path(temporary, "home")
        for name in [name for name in os.environ if name.startswith("HF_")]:
            del os.environ[name]
        os.environ.update({"HF_HUB_DISABLE_PROGRESS_BARS": "1", **hub.env(home)})  # before huggingface_hub is imported
        size, kept = _publish(hub, Path(temporary), layers, hidden, keep)
        found = {name: _measure(hub, home, name, keep) for name in (FIRST, SECOND, CUT_OFF, WHOLE)}
    if len({row.pop("sum") for row in found.values()}) > 1:
        raise AssertionError("the contenders have other weights")
    _print_table(found, kept, f"{keep} of {layers} layers of width {hidden}; the file has {size / 1e6:.0f} MB")
    first = found[FIRST]
    return {
        "file_bytes": size,
        "bytes_kept": kept,
        "bytes_served": first["bytes"],
        "served_over_kept": first["bytes"] / kept,
        "seconds": first["seconds"],
        "seconds_download_then_cut": found[WHOLE]["seconds"],
        "weight_requests_again": found[SECOND]["requests"],
        "bytes_served_cut_off": found[CUT_OFF]["bytes"],
        "cut_off": found[CUT_OFF]["requests"] - first["requests"],
        "short": short,
    }


def _publish(hub: Any, folder: Path, layers: int, hidden: int, keep: int) -> tuple[int, int]:
    """Put a model on the Hub as one file; return its size, and that of the kept tensors."""
    from hf_layerdrop import LayerDropBertForSequenceClassification as LayerDropBert
    from hf_layerdrop import prune_layers

    model = bert_classifier(layers, hidden)
    model.save_pretrained(folder / "whole", max_shard_size="100GB")
    hub.add_folder(REPO, folder / "whole")
    LayerDropBert.from_pretrained(folder / "whole", keep_layers=keep)  # imports all that is needed, which takes seconds
    prune_layers(model, keep)
    kept = sum(weight.nbytes for weight in model.state_dict().values())
    return (folder / "whole/model.safetensors").stat().st_size, kept


def _measure(hub: Any, home: Path, name: str, keep: int) -> dict[str, Any]:
    import shutil

    if name != SECOND:
        shutil.rmtree(home, ignore_errors=True)
    if name == CUT_OFF:
        hub.cut(WEIGHTS, method="GET", times=SMALL_REQUESTS + 2, after_bytes=2**20)
    before = len(hub.requests)
    start = time.perf_counter()
    model = _LOADS[name](keep)
    seconds = time.perf_counter() - start
    hub.faults.clear()
    requests = [request for request in hub.requests[before:] if re.search(WEIGHTS, request.path)]
    values = sum(float(weight.detach().double().sum()) for weight in model.parameters())
    return {
        "seconds": seconds,
        "bytes": sum(request.sent for request in requests),
        "requests": len(requests),
        "sum": values,
    }


def _keep_layers(keep: int) -> Any:
    from hf_layerdrop import LayerDropBertForSequenceClassification

    return LayerDropBertForSequenceClassification.from_pretrained(REPO, keep_layers=keep)


def _download_then_cut(keep: int) -> Any:
    from transformers import BertForSequenceClassification

    from hf_layerdrop import prune_layers

    model = BertForSequenceClassification.from_pretrained(REPO)
    prune_layers(model, keep)
    return model


_LOADS: dict[str, Callable[[int], Any]] = {
    FIRST: _keep_layers,
    SECOND: _keep_layers,
    CUT_OFF: _keep_layers,
    WHOLE: _download_then_cut,
}


def _print_table(found: dict[str, dict[str, Any]], kept: int, what: str) -> None:
    print(f"Loading {what}, the kept tensors {kept / 1e6:.0f} MB.\n")
    print("| what | seconds | of the weights served, MB | over the kept tensors | requests for weights |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for name, row in found.items():
        share = row["bytes"] / kept
        print(f"| {name} | {row['seconds']:.2f} | {row['bytes'] / 1e6:.1f} | {share:.4f} | {row['requests']} |")
    print()
