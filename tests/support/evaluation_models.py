"""Tiny models of families whose evaluation differs: how a loss counts labels, what goes from layer to layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import GPT2Config, LlamaConfig, T5Config

from conftest import build

SIZES = {
    "LlamaForCausalLM": LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    ),
    "GPT2LMHeadModel": GPT2Config(vocab_size=64, n_embd=16, n_layer=4, n_head=2, n_positions=32),
    "T5ForConditionalGeneration": T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, decoder_start_token_id=0
    ),
}


def network(head: str, **changes: Any) -> Any:
    """Build a tiny model with weights that matter."""
    if head not in SIZES:
        return build(head, **changes)
    torch.manual_seed(0)
    config = copy.deepcopy(SIZES[head])
    config.update(changes)
    model = getattr(transformers, head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
