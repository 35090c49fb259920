"""A Llama-shaped language model of bytes, trained in a few minutes of one core; needs no tokenizer and no download."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from hf_layerdrop import LayerDropConfig

BYTES = 256
POSITIONS = 256
ROWS, LENGTH = 8, 128
LEARNING_RATE = 2e-3


def read_text(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bytes to train on and those held out, the last twentieth.

    Args:
        data: A folder of .txt files or of Parquet files with a column ``text``, whose train.parquet is read if there is
            one; empty for the sentences of SST-2 that come with the package.
    """
    import torch

    text = torch.tensor(list("\n".join(_texts(data)).encode()), dtype=torch.long)
    middle = len(text) * 19 // 20
    return text[:middle], text[middle:]


def mini_lm(layers: int = 12, width: int = 256, seed: int = 0) -> LlamaForCausalLM:
    """Build the model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train_mini_lm(
    model: LlamaForCausalLM, text: torch.Tensor, *, steps: int, layerdrop: float = 0.0, seed: int = 0
) -> LlamaForCausalLM:
    """Train it on random windows of the text."""
    from hf_layerdrop import LayerDropConfig

    return train_on(model, LayerDropConfig(rate=layerdrop, seed=seed), _windows(text, seed), steps)


def train_on(
    model: LlamaForCausalLM, layerdrop: LayerDropConfig, batches: Iterator[Mapping[str, torch.Tensor]], steps: int
) -> LlamaForCausalLM:
    """Train a model with AdamW and one cycle of the learning rate; LayerDrop is gone after."""
    import torch

    from hf_layerdrop import inject_layerdrop, remove_layerdrop, set_step

    inject_layerdrop(model, layerdrop)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1)
    for step, batch in enumerate(itertools.islice(batches, steps)):
        set_step(model, step)
        model.train()(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return remove_layerdrop(model).eval()


def loss_of(model: Any, text: torch.Tensor, windows: int = 64) -> float:
    """Return the loss a byte, in nats, on some windows of a text, of a model that may be cut."""
    import torch

    rows = text[: windows * LENGTH].reshape(-1, LENGTH)
    with torch.no_grad():
        return float(model(input_ids=rows, labels=rows, use_cache=False).loss)


def prompts_of(text: torch.Tensor, count: int, length: int = 32) -> list[dict[str, torch.Tensor]]:
    """Return prompts, evenly spread over a text."""
    begins = [place * (len(text) - length) // count for place in range(count)]
    return [{"input_ids": text[begin : begin + length]} for begin in begins]


def _windows(text: torch.Tensor, seed: int) -> Iterator[Mapping[str, torch.Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    windows = text.unfold(0, LENGTH, 1)
    while True:
        rows = windows[torch.randint(len(windows), (ROWS,), generator=generator)]
        yield {"input_ids": rows, "labels": rows}


def _texts(data: str) -> list[str]:
    if not data:
        from hf_layerdrop.tasks.embedded import embedded_sst2

        return list(embedded_sst2()["train"]["sentence"])
    if files := sorted(Path(data).glob("*.txt")):
        return [file.read_text(encoding="utf-8") for file in files]
    import pyarrow.parquet

    files = sorted(Path(data).glob("train.parquet")) or sorted(Path(data).glob("*.parquet"))
    if not files:
        raise SystemExit(f"--data is {data!r}, where no .txt or .parquet files are: give a folder that has some.")
    return [text for file in files for text in pyarrow.parquet.read_table(file)["text"].to_pylist()]
