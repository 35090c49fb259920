"""Tiny whole models of several families, their inputs, and what a linear map does to a cut one, by hand."""

import torch
import transformers
from torch import nn

from conftest import build

# Head -> config class and fields; those of the three named families are built by conftest.
OTHERS = {
    "LlamaForCausalLM": (
        "LlamaConfig",
        {
            "vocab_size": 60,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.3,
            "pad_token_id": 1,
        },
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {
            "vocab_size": 60,
            "n_embd": 16,
            "n_layer": 4,
            "n_head": 2,
            "initializer_range": 0.3,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "ViTForImageClassification": (
        "ViTConfig",
        {
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "initializer_range": 0.3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "Olmo2ForCausalLM": (
        "Olmo2Config",
        {
            "vocab_size": 60,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "initializer_range": 0.3,
            "pad_token_id": 1,
        },
    ),
}
# Head -> how its output projection is called, and where its LayerNorm after the sum is.
PROJECTIONS = {
    "BertForSequenceClassification": ("output.dense", "output.LayerNorm"),
    "RobertaForMaskedLM": ("output.dense", "output.LayerNorm"),
    "BartForConditionalGeneration": ("fc2", "final_layer_norm"),
    "BartForCausalLM": ("fc2", "final_layer_norm"),
    "LlamaForCausalLM": ("mlp.down_proj", None),
    "GPT2LMHeadModel": ("mlp.c_proj", None),
    "ViTForImageClassification": ("mlp.fc2", None),
}


def whole_model(head):
    """Build a tiny model whose weights, norms and biases matter."""
    if head not in OTHERS:
        return build(head)
    name, fields = OTHERS[head]
    torch.manual_seed(0)
    model = getattr(transformers, head)(getattr(transformers, name)(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def some_batches(head, count=6, rows=8):
    """Return batches with padding of unequal length, or images."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(count):
        if head.startswith("ViT"):
            batches.append({"pixel_values": torch.randn((rows, 1, 8, 8), generator=generator)})
            continue
        ids = torch.randint(5, 60, (rows, 9 + number % 3), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, -3:] = 0
        ids[::2, -3:] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if head == "BartForConditionalGeneration":
            batch |= {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask.flip(0)}
        batches.append(batch)
    return batches


def apply_by_hand(model, layers, maps, norms):
    """Add ``o @ matrix + shift`` to what each projection gives, by hooks; return their handles."""

    def added(found):
        shift = 0.0 if found.shift is None else found.shift
        return lambda module, args, output: (output.double() @ (torch.eye(16).double() + found.matrix) + shift).float()

    handles = []
    for found in maps:
        linear = layers[found.run.stack][found.run.layer]
        handles.append(linear.register_forward_hook(added(found)))
    for norm, its in norms:
        handles.append(
            norm.register_forward_hook(
                lambda module, args, output, its=its: nn.functional.layer_norm(
                    args[0], its.normalized_shape, its.weight, its.bias, its.eps
                )
            )
        )
    return handles
