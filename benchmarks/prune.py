"""Memory and time of ``hf-layerdrop prune`` on a large sharded checkpoint, beside loading it, cutting it and saving it.

A Llama-shaped checkpoint of 8 GB in nine shards is written layer by layer, then each way runs in a process of its own.
What it holds itself (RssAnon, and shared memory) is sampled every 10 ms beside all that is resident at its peak, which
includes the pages of mapped files. Both results must have the same bytes in every tensor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRUNED, LOADED = "hf-layerdrop prune", "load, cut, save"
LAYERS_A_SHARD = 5
LOAD_CUT_SAVE = """
import sys
from transformers import LlamaForCausalLM
from hf_layerdrop import prune_layers
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
prune_layers(model, int(sys.argv[2]))
model.save_pretrained(sys.argv[3])
"""


def run(layers: int = 38, hidden: int = 2048, keep: int = 19, folder: str = "", short: bool = False) -> dict[str, Any]:
    """Measure it once on files in ``folder``; ``short`` shows in seconds that it works, and nothing else."""
    layers, hidden, keep = (8, 64, 3) if short else (layers, hidden, keep)
    with tempfile.TemporaryDirectory(dir=folder or None) as temporary:
        source, pruned, loaded = (Path(temporary, name) for name in ("source", "pruned", "loaded"))
        largest = _write_checkpoint(source, layers, hidden)
        size = _bytes_of(source)
        prune = ("-m", "hf_layerdrop", "prune", str(source), "--keep-layers", str(keep), "--output", str(pruned))
        found = {
            PRUNED: _watched(*prune, "--no-tokenizer"),
            LOADED: _watched("-c", LOAD_CUT_SAVE, str(source), str(keep), str(loaded)),
        }
        _check_same(pruned, loaded)
        kept = _bytes_of(pruned)
    sizes = f"{kept / 1e9:.2f} GB of {size / 1e9:.2f} GB; largest tensor {largest / 1e6:.0f} MB"
    print(f"{keep} of {layers} layers, {sizes}.\n")
    print("| what | own memory at its peak, MB | resident at its peak, MB | seconds |\n| :--- | ---: | ---: | ---: |")
    for name, cost in found.items():
        print(f"| {name} | {cost.own_mb:.0f} | {cost.resident_mb:.0f} | {cost.seconds:.1f} |")
    print()
    return {
        "bytes": size,
        "bytes_kept": kept,
        "largest_tensor_mb": largest / 1e6,
        "peak_mb": found[PRUNED].own_mb,
        "peak_resident_mb": found[PRUNED].resident_mb,
        "seconds": found[PRUNED].seconds,
        "peak_mb_load_cut_save": found[LOADED].own_mb,
        "seconds_load_cut_save": found[LOADED].seconds,
        "short": short,
    }


@dataclass(frozen=True)
class Cost:
    """What a process took at its peak."""

    own_mb: float
    resident_mb: float
    seconds: float


def _write_checkpoint(folder: Path, layers: int, hidden: int) -> int:
    """Write a checkpoint without ever holding it; return the bytes of its largest tensor."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        vocab_size=32_000,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        number = name.split(".layers.")[1].partition(".")[0] if ".layers." in name else "-1"
        shards.setdefault(f"model-{int(number) // LAYERS_A_SHARD + 1:05d}.safetensors", []).append(name)
    for seed, (shard, names) in enumerate(shards.items()):
        torch.manual_seed(seed)
        save_file({name: torch.randn(shapes[name]) for name in names}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": _bytes_of(folder)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return max(4 * shape.numel() for shape in shapes.values())


def _watched(*command: str) -> Cost:
    """Run Python in a process of its own, and look at its memory while it runs."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    own = resident = 0.0
    while process.poll() is None:
        status = _status(process.pid)
        own = max(own, status.get("RssAnon", 0) + status.get("RssShmem", 0))
        resident = max(resident, status.get("VmHWM", 0))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {process.returncode}")
    return Cost(own, resident, time.perf_counter() - start)


def _status(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:  # it is over
        return {}
    return {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _check_same(one: Path, other: Path) -> None:
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        files = sorted(folder.glob("*.safetensors"))
        return {name: file for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 - not a mapping

    ours, theirs = tensors(one), tensors(other)
    if ours.keys() != theirs.keys():
        raise AssertionError(f"the two ways write other tensors: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    for name, file in ours.items():
        if not torch.equal(safe_open(file, "pt").get_tensor(name), safe_open(theirs[name], "pt").get_tensor(name)):
            raise AssertionError(f"the two ways write other values of {name}")
