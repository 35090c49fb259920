"""A plain PyTorch loop with LayerDrop: one process or several, killed and started again as often as you like.

    python examples/pytorch_loop.py --output out
    torchrun --nproc_per_node 2 examples/pytorch_loop.py --output out

What LayerDrop needs of a loop is `set_step`; everything else is as without it.
"""

from __future__ import annotations

import argparse
import gc
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForSequenceClassification

from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, set_step

MICRO_STEPS, ROWS, LENGTH = 2, 8, 12


def new_model() -> BertForSequenceClassification:
    """Build a small model; yours comes from a checkpoint."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def batch_of(step: int, micro_step: int, rank: int) -> dict[str, torch.Tensor]:
    """Return rows whose label is whether their first token is above 50, the same at each call with these arguments."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro_step + rank)
    tokens = torch.randint(1, 100, (ROWS, LENGTH), generator=generator)
    return {"input_ids": tokens, "labels": (tokens[:, 0] > 50).long()}


def save(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write to a neighbour and rename, so that a process that is killed leaves the last checkpoint whole."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "layerdrop": layerdrop_state(model).state_dict(),  # seed and rates, which may have been changed
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save` wrote, and return the step that comes next; 0 where nothing was saved yet."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    layerdrop_state(model).load_state_dict(state["layerdrop"])
    return int(state["step"])


def train(arguments: argparse.Namespace, rank: int, device: str, *, several: bool) -> None:
    """Train, save every few steps, and take a shallow model out at the end."""
    with torch.device(device):
        model = new_model().train()
    inject_layerdrop(model, LayerDropConfig(arguments.rate, seed=0))  # before it is wrapped, the same on every rank
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.output / "checkpoint.pt"
    first = load(checkpoint, model, optimizer)
    trained = DistributedDataParallel(model) if several else model

    loss = torch.zeros(())
    for step in range(first, arguments.steps):
        torch.manual_seed(1000 * step + rank)  # for the other dropout: so a resumed run has the same; ours needs none
        for micro_step in range(MICRO_STEPS):
            set_step(model, step, micro_step)
            last = micro_step == MICRO_STEPS - 1
            with nullcontext() if last or not several else trained.no_sync():
                batch = {name: value.to(device) for name, value in batch_of(step, micro_step, rank).items()}
                loss = trained(**batch).loss / MICRO_STEPS
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step + 1) % arguments.save_every == 0:
            save(checkpoint, step + 1, model, optimizer)
    if rank == 0:
        print(f"trained from step {first} to {arguments.steps}, loss {MICRO_STEPS * loss.item():.3f}")
        model.save_pretrained(arguments.output / "model")
        prune_layers(model, 3)
        model.save_pretrained(arguments.output / "three-layers")


def main() -> None:
    """Join the other ranks where there are any, train, and leave them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--rate", type=float, default=0.2)
    arguments = parser.parse_args()

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = distributed.get_rank() if several else 0
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    train(arguments, rank, device, several=several)
    if several:
        # The wrapped model must be gone before the group is: whichever goes last ends gloo's threads, and a wrapped
        # model does so while it holds Python's lock, which such a thread may wait for (seen with torch 2.13).
        gc.collect()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
