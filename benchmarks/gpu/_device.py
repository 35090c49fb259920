"""Clocks, models and cuts that do not care where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks._rounds import ratio
from hf_layerdrop.architectures.stacks import find_stacks

Batch = dict[str, torch.Tensor]


class Skipped(Exception):
    """What cannot be measured here, with the reason."""


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Time one call: by events of the device where it has them, so that no launch in its queue is missed."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))


def in_turn(
    contenders: Mapping[str, Callable[[int], Callable[[], Any]]], rounds: int, device: str, warm_up: int = 3
) -> dict[str, list[float]]:
    """Time the contenders in turning order; each is called with the number of the round and returns what is timed."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = milliseconds(contenders[name](number + warm_up), device)
            if number >= 0:
                times[name].append(elapsed)
    return times


def beside(times: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    """Return medians of two contenders and the ratio with its interval."""
    return {
        "ours_ms": median(times[ours]),
        "beside_ms": median(times[other]),
        "ratio (95 %)": str(ratio(times[ours], times[other])),
    }


def model_and_batch(name: str, device: str, short: bool) -> tuple[PreTrainedModel, Batch]:
    """Build BERT-base, BART-base or a Llama of 1B parameters with random weights, other dropout off, and a batch."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = BUILDERS[name](short)
    rows, length = (2, 8) if short else SIZES[name]
    tokens = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(1)) if name == "BERT-base" else tokens
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    batch = {"input_ids": tokens.to(device), "labels": labels.to(device)}
    return model.to(dtype).train(), batch


def _bert(short: bool) -> PreTrainedModel:
    small = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "vocab_size": 100,
    }
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**off, **(small if short else {})))


def _bart(short: bool) -> PreTrainedModel:
    width, feed_forward, heads = (32, 64, 2) if short else (768, 3072, 12)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=100 if short else 50265,
            d_model=width,
            encoder_layers=6,
            decoder_layers=6,
            encoder_ffn_dim=feed_forward,
            decoder_ffn_dim=feed_forward,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            dropout=0.0,
        )
    )


def _llama(short: bool) -> PreTrainedModel:
    sizes = (100, 32, 64, 6, 2, 1) if short else (128256, 2048, 8192, 16, 32, 8)
    vocabulary, width, feed_forward, layers, heads, pairs = sizes
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=pairs,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


BUILDERS: dict[str, Callable[[bool], PreTrainedModel]] = {"BERT-base": _bert, "BART-base": _bart, "Llama 1B": _llama}
SIZES = {"BERT-base": (32, 128), "BART-base": (32, 128), "Llama 1B": (4, 512)}


class Cuts:
    """Cut the lists of layers of a model physically, again and again."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.stacks = model, find_stacks(model)
        self.layers = {name: list(stack.layers(model)) for name, stack in self.stacks.items()}

    def to(self, masks: Mapping[str, Any]) -> None:
        """Keep the layers whose mask is true."""
        for name, layers in self.layers.items():
            kept = [layer for layer, runs in zip(layers, masks[name], strict=True) if runs]
            self.model.set_submodule(self.stacks[name].path, nn.ModuleList(kept))
