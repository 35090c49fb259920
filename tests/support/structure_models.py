"""Tiny models whose sub-layers and heads are dropped, and inputs for them."""

from __future__ import annotations

import torch
import transformers
from torch import nn
from transformers import BertConfig, CLIPTextConfig, GPT2Config, LlamaConfig, ViTConfig

from conftest import BERT, DEPTH, VOCABULARY, batch_for, build

WIDTH = 16


FFN = 24


CROSS = "BertLMHeadModel with cross-attention"


CONFIGS = {
    "GPT2Model": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=4,
        n_inner=FFN,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "CLIPTextModel": lambda: CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=FFN,
    ),
    "LlamaModel": lambda: LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=FFN,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.3,
    ),
    "ViTModel": lambda: ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=FFN,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        pooler_output_size=WIDTH,
    ),
}


def new(name: str) -> nn.Module:
    """Build a tiny model with weights that matter."""
    if name == CROSS:
        config = BertConfig(**{**BERT, "is_decoder": True, "add_cross_attention": True})
        torch.manual_seed(0)
        return shaken(transformers.BertLMHeadModel._from_config(config, attn_implementation="eager"))
    if name not in CONFIGS:
        return build(name)
    torch.manual_seed(0)
    return shaken(getattr(transformers, name)._from_config(CONFIGS[name](), attn_implementation="eager"))


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def inputs(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    if name == "ViTModel":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    if name == CROSS:
        states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
        return {**batch_for("BertLMHeadModel", seed), "encoder_hidden_states": states}
    return batch_for(name if name not in CONFIGS else "BertModel", seed)
