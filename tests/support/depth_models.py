"""Tiny models of several heads and families with labels, and what plain transformers makes of their cuts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from conftest import DEPTH, VOCABULARY, batch_for, build
from hf_layerdrop.architectures.stacks import find_stacks

Batch = dict[str, torch.Tensor]
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}
OTHERS: dict[str, Any] = {
    "GPT2LMHeadModel": lambda: GPT2LMHeadModel(
        GPT2Config(
            n_embd=16, n_layer=DEPTH, n_head=2, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SMALL
        )
    ),
    "LlamaForCausalLM": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, num_hidden_layers=DEPTH, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=40, **SMALL,
        )
    ),
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
        T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=DEPTH, num_heads=2, dropout_rate=0.0, vocab_size=VOCABULARY,
            decoder_start_token_id=0,
        )
    ),
    "ViTForImageClassification": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=DEPTH, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
        )
    ),
}  # fmt: skip
TOKENS = {"BertForTokenClassification", "RobertaForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"}
SEQ2SEQ = {"BartForConditionalGeneration", "T5ForConditionalGeneration"}
HEADS = [
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "RobertaForMaskedLM",
    "BartForConditionalGeneration",
    *OTHERS,
]


def model_of(head: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Build a tiny model in train mode, without dropout, whose weights matter."""
    if head not in OTHERS:
        return build(head, seed, **changes).train()
    torch.manual_seed(seed)
    model = OTHERS[head]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.25 * torch.randn_like(weight))
    return model.train()


def labelled(head: str, seed: int = 0) -> Batch:
    """Return a batch with padding, and labels."""
    generator = torch.Generator().manual_seed(seed + 7)
    if head == "ViTForImageClassification":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator), "labels": torch.tensor([0, 2, 1])}
    batch = batch_for(head if head not in OTHERS else "BertModel", seed)
    if head == "BertForQuestionAnswering":
        return {**batch, "start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 2, 5])}
    if head in TOKENS:
        classes = 2 if head == "BertForTokenClassification" else VOCABULARY
        labels = torch.randint(0, classes, batch["input_ids"].shape, generator=generator)
        return {**batch, "labels": labels.masked_fill(batch["attention_mask"] == 0, -100)}
    if head in SEQ2SEQ:
        labels = torch.randint(5, VOCABULARY, (3, 6), generator=generator)
        labels[1, 4:] = -100
        return {**batch, "labels": labels}
    return {**batch, "labels": torch.randint(0, 2, (3,), generator=generator)}


def plain_cut(model: PreTrainedModel, kept: dict[str, list[int]]) -> PreTrainedModel:
    """Build a plain transformers model from a config of fewer layers, with copies of the weights by name."""
    config, stacks = copy.deepcopy(model.config), find_stacks(model)
    config.__dict__.pop("hf_layerdrop", None)
    for name, stack in stacks.items():
        setattr(stack.config(config), stack.depth_field, len(kept[name]))
    cut = _plain(type(model))._from_config(config, attn_implementation=model.config._attn_implementation).train()
    with torch.no_grad():
        for name, weight in cut.named_parameters():
            weight.copy_(model.get_parameter(original_name(name, model, kept)))
        for name, buffer in cut.named_buffers():
            buffer.copy_(model.get_buffer(original_name(name, model, kept)))
    return cut


def original_name(name: str, model: PreTrainedModel, kept: dict[str, list[int]]) -> str:
    """Return what a weight of the cut model is called in the whole one; T5's bias stays with its first block."""
    for stack_name, stack in find_stacks(model).items():
        prefix = f"{stack.path}."
        if name.startswith(prefix):
            layer, _, rest = name.removeprefix(prefix).partition(".")
            old = 0 if "relative_attention_bias" in rest else kept[stack_name][int(layer)]
            return f"{prefix}{old}.{rest}"
    return name


def _plain(kind: type) -> Any:
    while hasattr(kind, "_adopted_from"):
        kind = kind._adopted_from
    return kind
