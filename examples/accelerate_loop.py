"""A loop with accelerate and LayerDrop: the launch file decides whether it is one process, DDP, FSDP2 or ZeRO-3.

    python examples/accelerate_loop.py --output out
    accelerate launch --config_file examples/launch/fsdp2.yaml examples/accelerate_loop.py --output out

Started again after a crash, it goes on after the last epoch that was saved.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_step

MICRO_STEPS = 2


def new_model() -> BertForSequenceClassification:
    """Build a small model; yours comes from a checkpoint."""
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def rows(count: int, length: int = 12) -> TensorDataset:
    """Return rows whose label is whether their first token is above 50."""
    tokens = torch.randint(1, 100, (count, length), generator=torch.Generator().manual_seed(0))
    return TensorDataset(tokens, (tokens[:, 0] > 50).long())


class Progress:
    """How far the training has come, saved and loaded with the rest."""

    def __init__(self) -> None:
        self.epoch = self.step = 0

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds of it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.step = state["epoch"], state["step"]


def save(accelerator: Accelerator, output: Path, epoch: int) -> None:
    """Write a checkpoint under another name and rename it, so that what has the right name is whole."""
    new = output / f"unfinished-{epoch}"
    accelerator.save_state(str(new))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        new.rename(output / f"epoch-{epoch}")
        shutil.rmtree(output / f"epoch-{epoch - 1}", ignore_errors=True)
    accelerator.wait_for_everyone()


def load(accelerator: Accelerator, output: Path) -> None:
    """Load the last checkpoint, if there is one."""
    saved = sorted(output.glob("epoch-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    if saved:
        accelerator.load_state(str(saved[-1]))


def main() -> None:
    """Train, save at every epoch, and write the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.2)
    arguments = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(
        gradient_accumulation_steps=MICRO_STEPS,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True
        ),  # the order of an epoch depends on it alone
    )
    model = new_model()
    inject_layerdrop(model, LayerDropConfig(arguments.rate, seed=0))  # before `prepare` wraps it, on every rank
    layerdrop, progress = layerdrop_state(model), Progress()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(rows(arguments.rows), batch_size=8, shuffle=True)
    model, optimizer, data = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(layerdrop, progress)  # whatever has state_dict and load_state_dict
    load(accelerator, arguments.output)

    model.train()
    loss = torch.zeros(())
    while progress.epoch < arguments.epochs:
        data.set_epoch(progress.epoch)
        for number, (tokens, labels) in enumerate(data):
            set_step(model, progress.step, number % MICRO_STEPS)
            with accelerator.accumulate(model):
                loss = model(tokens, labels=labels).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            progress.step += accelerator.sync_gradients
        progress.epoch += 1
        save(accelerator, arguments.output, progress.epoch)

    accelerator.print(f"trained {progress.step} steps, loss {loss.item():.3f}")
    accelerator.unwrap_model(model).save_pretrained(
        arguments.output / "model",
        state_dict=accelerator.get_state_dict(model),
        is_main_process=accelerator.is_main_process,
    )
    # The wrapped model must be gone before the process group is: whichever goes last ends gloo's threads, and a wrapped
    # model does so while it holds Python's lock, which such a thread may wait for (seen with torch 2.13).
    model, optimizer, data = accelerator.free_memory(model, optimizer, data)
    accelerator.end_training()


if __name__ == "__main__":
    main()
