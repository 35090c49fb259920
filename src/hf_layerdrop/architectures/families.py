"""What looking at a model or a config cannot know, as data: the only place that has heard of model families.

`stacks.py` finds stacks by looking (a run of same-kind blocks whose length a config field gives). What it looks for,
the names of depth fields, and what looking gets wrong, stands here: which config fields go along with a cut, what the
first block owns for all, what a layer returns, and the refusals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_layerdrop import compat

# Config fields that may hold the depth of a stack, most specific first.
_ANY = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_ENCODER = ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "encoder_num_layers")
_DECODER = ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers", "decoder_num_layers")
DEPTH_FIELDS: dict[str, tuple[str, ...]] = {
    "encoder": (*_ENCODER, *_ANY, "depth"),
    "decoder": (*_DECODER, *_ANY),
    "layers": (*_ANY, "depth", "encoder_layers", "decoder_layers", "num_blocks", "layers"),
}

# Model types whose layers share their weights: a layer cannot be taken out, because there is only one.
SHARED_LAYERS = {"albert": "ALBERT"}

# Model types that no general rule can serve, and why.
_BY_NUMBER = (
    "a part beside the stack reads what the vision layers give by their numbers, and would read another layer's."
)
_REFINES = (
    "its decoder corrects the boxes between its layers, also after one that is dropped, by a head for each layer."
)
_REFINING = (
    *("d_fine", "dab-detr", "deformable_detr", "deimv2", "grounding-dino", "mm-grounding-dino", "omdet-turbo"),
    *("pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4", "rt_detr", "rt_detr_v2"),
    *("sam3", "sam3_lite_text", "sam3_video"),
)
_LOOPS_OUTSIDE = "its vision layers are run from outside of the module that holds them, where no draw would begin."
REFUSED: dict[str, str] = {
    "bridgetower": "BridgeTower joins its text, image and cross-modal layers pairwise, by their numbers.",
    **dict.fromkeys(("granite_docling", "granite_docling_vision"), _LOOPS_OUTSIDE),
    **dict.fromkeys(_REFINING, _REFINES),
    **dict.fromkeys(("sam_hq", "sam_hq_vision_model"), _BY_NUMBER),
    "funnel": "its layers shorten the sequence between them, by where they stand, for others that lengthen it again.",
    "lilt": "its layers hand on two streams, of text and of layout, as one value.",
    "lightglue": "each layer has a partner that tells whether to stop after it, and that has no place in the config.",
    "neomme": "it hands token values to the first and the last layer of full attention, which a cut would change.",
    "squeezebert": "its encoder calls the forward of its layers directly, past whatever would leave one out.",
    "zamba": "several of its layers share the weights of one transformer block, which stands in one of them.",
}


@dataclass(frozen=True)
class FirstBlockBias:
    """A relative position bias that the first block owns and hands to all others.

    In training every block borrows it, so that the first one that runs computes it; a cut moves it to the first kept
    block. Without either a model runs, and is wrong.

    Attributes:
        weights: Names of the modules that hold it, which the first block alone has.
        flag: The attribute that says so; empty if there is none.
        handed_on: Arguments of a block that it returns after its hidden states; empty for what is not an argument.
    """

    weights: tuple[str, ...] = ("relative_attention_bias",)
    flag: str = "has_relative_attention_bias"
    handed_on: tuple[str, ...] = ("position_bias", "encoder_decoder_position_bias")


_T5 = FirstBlockBias()
_WITH_ATTENTIONS = ("position_bias", "", "encoder_decoder_position_bias", "")
BIAS_IN_FIRST_BLOCK: dict[str, FirstBlockBias] = {
    **dict.fromkeys(("t5", "mt5", "pop2piano", "switch_transformers"), _T5),
    "longt5": FirstBlockBias(("relative_attention_bias", "global_relative_attention_bias"), handed_on=_WITH_ATTENTIONS),
    "pix2struct": FirstBlockBias(handed_on=_WITH_ATTENTIONS),
    "pix2struct_text_model": FirstBlockBias(handed_on=_WITH_ATTENTIONS),
    "udop": _T5,
    "wavlm": FirstBlockBias(("rel_attn_embed",), "", ("position_bias",)),
}

# Fields with one entry a layer go along with a cut. Lists of words are known by looking (`layer_types`); these hold
# numbers, of which the same could be said of, say, the sizes of a convolution.
PER_LAYER_FIELDS = re.compile(
    r".*_per_layer|no_rope_layers|layer_rope_theta|activation_sparsity_pattern|intermediate_size|sliding_windows|"
    r"attention_window"
)
_PER_LAYER_WORDS = re.compile(r".*(layer|block|type|pattern).*")

# Fields that list layers by their numbers: those of the kept layers stay, under their new numbers.
INDEX_FIELDS = re.compile(
    r"(moe|mlp_only|rope_scaling|cross_attention|subsample|global_attention)_(layers|blocks)|full_attn_idxs|attn_layer_indices|"
    r"(hybrid|local|ple)_layer_ids|(deepstack_visual|fullatt_block|global_attn|window_block)_ind(ex|ic)es|"
    r"residual_block_indices"
)

# Who borrows from an earlier layer (see `shared_kv.py`): lists of kinds with the word for those who borrow and for
# those who lend; lists that name for each layer the one it borrows from, itself if none; and the count of layers at the
# end that take keys and values from the last layer before them that is of their kind.
BORROWING_KINDS = {"indexer_types": ("shared", "full")}
SOURCE_FIELDS = ("kv_source_layers",)
SHARED_TAIL_FIELD, KINDS_FIELD = "num_kv_shared_layers", "layer_types"
# What a layer keeps because it is the last of its kind to have keys and values of its own, also where nobody borrows
# them: it goes with the place, so a cut moves it to another layer, which computes the same.
LENDING_FLAG = "store_full_length_kv"

# Where a config of transformers keeps what single layers have otherwise (`per_layer_config` in config.json).
OVERRIDES_FIELD = "per_layer_config"

# Depth fields of parts that stand beside the stack which the plain fields count, by a word in their path.
NAMED_DEPTHS = {
    "predictor": ("pred_num_hidden_layers",),
    "mit": ("mit_num_hidden_layers",),
    "prompts_generator": ("prompt_layers",),
}

# Fields that count layers of a kind from the first one on, or back from the last one.
LEADING_COUNTERS = ("first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index",
                    "num_first_full_attention_layers")  # fmt: skip
TRAILING_COUNTERS = ("num_kv_shared_layers", "num_last_full_attention_layers")

# What a layer returns after its hidden states where reading it does not tell: names of its arguments, or "".
RETURNED: dict[str, tuple[str, ...]] = {"openai-gpt": ("", ""), "rwkv": ("state", "")}

# Native LayerDrop: how the fields of configs and the attributes of modules that hold its rate are called, those of a
# stack, and the attribute of the module that loops over it; what reads none looks into its config in every forward.
NATIVE_RATE = re.compile(r"(?!hf_)(.+_)?layer_?drop")
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

# Fields for the number of heads, by stack.
HEAD_FIELDS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder_attention_heads", HEADS_FIELD, *HEAD_COUNTS),
    "decoder": ("decoder_attention_heads", HEADS_FIELD, *HEAD_COUNTS),
    "layers": (HEADS_FIELD, *HEAD_COUNTS),
}

# Fields by which a composite model picks hidden states of a part of it by their number.
FEATURE_LAYER_FIELDS = ("vision_feature_layer", "deepstack_layers")


@dataclass(frozen=True)
class Tap:
    """A field by which a head takes the hidden states after some layers, which it knows by number.

    Attributes:
        part: The part of a composite model whose layers are meant, where the field stands in the config above it; empty
            if it stands in the config of the layers.
        shift: What added to the number of the field gives the number of layers that have run by then.
        repeats: Whether one hidden state may be taken twice, as the sub-network asks for where the layers between two
            taps are gone: not if the head only looks whether a layer's number is in the list.
    """

    part: str = ""
    shift: int = 0
    repeats: bool = True


LAYER_TAPS = {
    "vision_feature_layer": Tap("vision"),
    "spatial_vision_layer": Tap("vision"),
    "feature_layer": Tap(),
    "extract_layers": Tap("vision", 1),
    "intermediate_layers_indices": Tap(shift=1),
    "intermediate_hook_ids": Tap("patch", 1, repeats=False),
    "intermediate_hidden_state_indices": Tap(shift=1, repeats=False),
    "merge_index": Tap(shift=1, repeats=False),
    "backbone_out_indices": Tap(shift=1, repeats=False),
    "out_indices": Tap(shift=-1, repeats=False),
    "cat_hidden_layers": Tap(shift=1, repeats=False),
}
# The same, as counts of the last layers of a stack, by the type of its config.
TRAILING_TAPS = {"eomt": ("num_blocks",), "eomt_dinov3": ("num_blocks",), "videomt": ("num_blocks",)}

# The same, in fields that no rule can renumber: the part whose layers they mean, and where they stand, by the type of
# the whole model.
UNTOLD_TAPS = {
    "granite4_vision": ("", "deepstack_layer_map"),
    "molmo2": ("vision", "adapter_config.vision_feature_layer"),
    "qwen3_omni_moe": ("text", "talker_config.accept_hidden_layer"),
}

# The same, as the first of the layers that a field of a stack's config lists: the stack, and the field.
FIRST_TAPS = {"deepseek_vl_hybrid": ("high_res_vision", "global_attn_indexes")}

# Stacks after whose middle layer, by half of the depth, something more is done.
MIDWAY = ("granite_speech_encoder", "granite_speech_plus_encoder", "granite_speech5_encoder")

# Heads that count the stages of a backbone from 1 where it counts from 0: a cut can serve one of both, unless the
# layers that they take from stay.
COUNTING_FROM_ONE = ("BeitForSemanticSegmentation",)

# Who divides the weights of its layers in place, by their numbers, in its first forward of evaluation: the attribute of
# the module around them that says so, and the field that says after how many layers the divisor grows.
RESCALING = {"rwkv": ("layers_are_rescaled", "rescale_every")}

# The field of a model whose embeddings hold a slice for each layer.
SLICES_FIELD = "hidden_size_per_layer_input"

# How a part of a layer that adds the residual itself calls it.
RESIDUAL_ARGUMENTS = ("input_tensor", "residual")


def depth_field(config: Mapping[str, Any], stack: str, depth: int, path: str = "") -> str | None:
    """Find the config field that counts the layers of a stack, or None if no field holds its depth.

    Of a part that stands beside the stack, as its ``path`` tells, that is a field of its own.
    """
    own = [fields for word, fields in NAMED_DEPTHS.items() if word in path.split(".")]
    for field in (*(own[0] if own else ()), *DEPTH_FIELDS.get(stack, DEPTH_FIELDS["layers"])):
        if _counts(config.get(field), depth):
            return field
    others = [field for field, value in config.items() if _speaks_of_depth(field) and _counts(value, depth)]
    return others[0] if len(others) == 1 else None


def _counts(value: Any, depth: int) -> bool:
    return type(value) is int and value == depth


def _speaks_of_depth(field: str) -> bool:
    return field.endswith(("layers", "depth", "blocks"))


def cut_fields(config: Mapping[str, Any], depth: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return the new values of the fields of a config that list or number the layers of a stack, its depth aside."""
    cut: dict[str, Any] = {}
    for field, value in config.items():
        if isinstance(value, list | tuple) and INDEX_FIELDS.fullmatch(field) and _are_indices(value, depth):
            cut[field] = type(value)(kept.index(layer) for layer in value if layer in kept)
        elif isinstance(value, list | tuple) and len(value) == depth and _is_per_layer(field, value):
            cut[field] = type(value)(value[layer] for layer in kept)
        elif field in SOURCE_FIELDS and isinstance(value, list | tuple) and len(value) == depth:
            cut[field] = type(value)(_cut_sources(value, kept))
        elif _is_of_transformers(value) and isinstance(value, compat.LAYER_OVERRIDES.value):
            left = {
                new: value.per_layer_overrides[old] for new, old in enumerate(kept) if old in value.per_layer_overrides
            }
            cut[field] = replace(value, per_layer_overrides=left)
        elif field in LEADING_COUNTERS and type(value) is int:
            cut[field] = sum(layer < value for layer in kept) if value <= depth else value
        elif field in TRAILING_COUNTERS and type(value) is int:
            cut[field] = sum(layer >= depth - value for layer in kept)
    return cut | _cut_stages(config, depth, kept)


def _cut_sources(sources: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Renumber what says by its number which layer each layer borrows from; itself, if that one is gone."""
    return [kept.index(source if (source := sources[layer]) in kept else layer) for layer in kept]


def _is_of_transformers(value: Any) -> bool:
    """Tell what a config file cannot hold, without importing transformers for what it can."""
    return type(value).__module__.startswith("transformers.")


def _cut_stages(config: Mapping[str, Any], depth: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return the new values of the fields in which a backbone names its layers, the embeddings first, and chooses some.

    What is chosen is what the layers give that are kept up to there; the last layer stays the last.
    """
    names = config.get("stage_names")
    if not isinstance(names, list | tuple) or len(names) != depth + 1:
        return {}
    indices = compat.OUT_INDICES.name
    cut: dict[str, Any] = {"stage_names": type(names)(names[: len(kept) + 1])}
    if isinstance(chosen := config.get(indices), list | tuple):
        cut[indices] = type(chosen)(sorted({stage_after(place, depth, kept) for place in chosen}))
        cut[compat.OUT_FEATURES.name] = [cut["stage_names"][place] for place in cut[indices]]
    return cut


def stage_after(place: int, depth: int, kept: Sequence[int]) -> int:
    """Return which stage of a backbone, the embeddings first, has after a cut what one has before it."""
    return sum(layer < place % (depth + 1) for layer in kept)


def _is_per_layer(field: str, value: Sequence[Any]) -> bool:
    if all(isinstance(entry, str) for entry in value):
        return _PER_LAYER_WORDS.fullmatch(field) is not None
    return PER_LAYER_FIELDS.fullmatch(field) is not None


def _are_indices(value: Sequence[Any], depth: int) -> bool:
    return all(type(layer) is int and 0 <= layer < depth for layer in value)


def bias_in_first_block(model_type: str | None) -> FirstBlockBias | None:
    """Return what the first block of a model type owns for all others, or None."""
    return BIAS_IN_FIRST_BLOCK.get(model_type or "")


def returned_arguments(model_type: str | None) -> tuple[str, ...]:
    """Return which arguments the layers of a model type return after their hidden states, where only data tells."""
    bias = bias_in_first_block(model_type)
    return bias.handed_on if bias else RETURNED.get(model_type or "", ())


def refusal(model_type: str | None) -> str | None:
    """Say why models of this type cannot be dropped or pruned by layers, or return None if they can."""
    if model_type in SHARED_LAYERS:
        return (
            f"{SHARED_LAYERS[model_type]} runs one shared layer several times, so there are no single layers to "
            "take out; set num_hidden_layers in its config to run it fewer times."
        )
    return REFUSED.get(model_type or "")


@dataclass(frozen=True)
class Shape:
    """How the config of a family says depth and width, and which tokenizer goes with it.

    Attributes:
        depth: Config fields of the depths, one a stack.
        width: Field of the width.
        heads: Fields of the number of attention heads.
        inner: Fields of the width of the feed-forward parts.
        positions: Field of the number of positions.
        spare_positions: Positions that hold no token.
        tokenizer: A kind of `checkpoints/tokenizers.py`.
    """

    depth: tuple[str, ...]
    width: str
    heads: tuple[str, ...]
    inner: tuple[str, ...]
    positions: str = "max_position_embeddings"
    spare_positions: int = 0
    tokenizer: str = "bpe"


_PLAIN_DEPTH = ("num_hidden_layers",)
_PLAIN = (_PLAIN_DEPTH, "hidden_size", ("num_attention_heads",), ("intermediate_size",))

# Families that can be made small from a few numbers (`--config tiny-12x128`).
SHAPES: dict[str, Shape] = {
    "bert": Shape(*_PLAIN, tokenizer="wordpiece"),
    "roberta": Shape(*_PLAIN, spare_positions=2, tokenizer="bpe-marked"),
    "modernbert": Shape(*_PLAIN, tokenizer="wordpiece"),
    "llama": Shape(*_PLAIN),
    "gpt2": Shape(("n_layer",), "n_embd", ("n_head",), ("n_inner",), "n_positions"),
    "bart": Shape(
        ("encoder_layers", "decoder_layers"),
        "d_model",
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        tokenizer="bpe-marked",
    ),
}
# The family that "tiny" stands for, by the head that a task needs.
TINY_BY_HEAD = {"CausalLM": "gpt2", "Seq2SeqLM": "bart"}
TINY_OTHERWISE = "bert"
