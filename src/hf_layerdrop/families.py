"""What looking at a model or a config cannot know, as data: the only place that has heard of model families.

`stacks.py` and `headers.py` find stacks by looking (a run of same-kind blocks whose length a config field gives). What
they have in common, the names of depth fields and of stacks, and what looking gets wrong, the refusals, stands here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Config fields that may hold the depth of a stack, most specific first.
DEPTH_FIELDS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    "layers": ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers", "decoder_layers"),
}

# Model types whose layers share their weights: a layer cannot be taken out, because there is only one.
SHARED_LAYERS = {"albert": "ALBERT"}

# Model types whose first block owns the relative position bias that all blocks use. Without moving it, a cut model
# runs, and is wrong.
BIAS_IN_FIRST_BLOCK = ("t5", "mt5", "umt5", "longt5", "udop", "pop2piano", "pix2struct", "switch_transformers")

# Native LayerDrop: config fields are floats with these names; the module that owns the stack reads its copy from
# `layerdrop`.
NATIVE_RATE_ATTRIBUTE = "layerdrop"
NATIVE_RATE_FIELDS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder_layerdrop", "layerdrop"),
    "decoder": ("decoder_layerdrop", "layerdrop"),
    "layers": ("layerdrop",),
}

# How an attention calls what its heads are joined by, the width of a head, and their number; widths of values first.
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "o", "out_lin", "dense", "Wo", "wo")
HEAD_WIDTHS = ("v_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")

# Where a config says the same, for heads of queries and for those of keys and values.
HEADS_FIELD, KEY_VALUE_HEADS_FIELD, HEAD_WIDTH_FIELD = "num_attention_heads", "num_key_value_heads", "head_dim"
# How an attention calls the projections to queries, keys and values.
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))

# How a part of a layer that adds the residual itself calls it.
RESIDUAL_ARGUMENTS = ("input_tensor", "residual")


def stack_name(path: str) -> str:
    """Name a stack after its place in the model: ``encoder``, ``decoder``, or ``layers`` if the path says neither."""
    found = re.findall(r"encoder|decoder", path)
    return found[-1] if found else "layers"


def depth_field(config: Mapping[str, Any], stack: str, depth: int) -> str | None:
    """Find the config field that counts the layers of a stack, or None if no field holds its depth."""
    for field in DEPTH_FIELDS.get(stack, DEPTH_FIELDS["layers"]):
        value = config.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value == depth:
            return field
    return None


def refusal(model_type: str | None) -> str | None:
    """Say why models of this type cannot be dropped or pruned by layers, or return None if they can."""
    if model_type in SHARED_LAYERS:
        return (
            f"{SHARED_LAYERS[model_type]} runs one shared layer several times, so there are no single layers to "
            "take out; set num_hidden_layers in its config to run it fewer times."
        )
    if model_type in BIAS_IN_FIRST_BLOCK:
        return (
            f"{model_type} keeps the position bias of all its blocks in the first one, from where a cut would "
            "have to move it; that is not supported yet."
        )
    return None
