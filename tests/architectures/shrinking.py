"""Shrink the default config of any model type: four layers a stack, all widths small and fitting each other.

Sizes are known by the names of their fields, since transformers names them much alike. Every width is 32 (four heads of
8), so that parts of a composite model fit each other.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_layerdrop.architectures.families import LAYER_TAPS, TRAILING_TAPS

DEPTH = 4
WIDTH, HEADS, HEAD_WIDTH, INNER, VOCABULARY, LENGTH = 32, 4, 8, 64, 128, 64
IMAGE, PATCH = 32, 8

_DEPTHS = (
    r"num_hidden_layers|num_layers|n_layers?|(en|de)coder_layers|depth|num_(en|de)coder_layers|layers|num_blocks|"
    r"(en|de)coder_(num_(hidden_)?layers|depth)|num_hidden_blocks|num_(en|de)coder_(hidden_layers|blocks)|"
    r".*num_hidden_layers|text_layers|vision_layers|.*_num_layers|num_text_layers"
)
# The first pattern that matches a whole field name decides.
_SIZES: list[tuple[str, int]] = [
    (r"num_(conv|convolution|upsampling|downsample|adapter|residual|kernel|feature|post|speech).*layers", 0),
    (_DEPTHS, DEPTH),
    (r"(.*_)?vocab_size|num_embeddings|codebook_size|num_tokens", VOCABULARY),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads|num_global_key_value_heads|multi_query_group_num)", 2),
    (r".*(linear|lin).*num_(key|value)_heads|linear_num_.*_heads", 2),
    (r"mamba_(n_heads|num_heads)|num_mamba_heads", 8),
    (r"n_groups|mamba_n_groups|mamba_ngroups|n_mamba_groups", 1),
    (r"n_group|topk_group|num_expert_groups?|n_expert_groups?", 1),
    (r"(.*_)?(num_attention_heads|num_heads|n_heads?|attention_heads|num_local_heads|heads|index_n_heads)", HEADS),
    (r"mamba_(d_)?head(_dim)?|mamba_d_head", 8),
    (r"qk_head_dim", 2 * HEAD_WIDTH),
    (r"(.*_)?(head_dim|d_kv|kv_channels|attention_head_size|d_head|head_size)|channel_dim|head_hidden_dim", HEAD_WIDTH),
    (r"(.*_)?(kv|q|o|qk)_lora_rank|.*_lora_rank|low_rank|.*_rank", 16),
    (r"(.*_)?(top_?k|experts_per_tok(en)?|num_experts_per_tok(en)?|moe_k|num_selected_experts|moe_topk)", 2),
    (r"(.*_)?(num_experts|num_local_experts|n_routed_experts|moe_num_experts|expert_num|num_moe_experts)", 4),
    (r"(.*_)?n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"(.*_)?(ssm_)?state_size|mamba_d_state|d_state|ssm_state_size|conv_state_size", 8),
    (r"mamba_chunk_size|chunk_size", 8),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|feed_?forward_(dim|size)|ffn_hidden_size|inner_dim)", INNER),
    (r"(.*_)?(intermediate_(dim|sizes?|channels)|dim_feedforward|d_inner|n_inner|d_inner_hid|ff_dim|mlp_hidden_(dim|size)"
     r"|linear_units|ffn_embed_dim|feed_forward_proj_dim|hidden_size_mlp)", INNER),
    (r"mamba_(intermediate|inner).*|mamba_d_inner", INNER),
    (r"(.*_)?(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions)", LENGTH),
    (r"(.*_)?max_source_positions|max_length|seq_length|context_length|max_text_len|max_position_embedding", LENGTH),
    (r"patch_size|.*_patch_size", PATCH),
    (r"(.*_)?(image_size|img_size|input_image_size|crop_size)", IMAGE),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|embedding_(size|dim)|projection_(dim|size)|d_embed"
     r"|model_dim|emb_dim|output_dim|hidden_dims?|bottleneck_size|attention_dim|embed_size|hidden_channels"
     r"|rnn_hidden_dim|hidden_size_per_layer_input|decoder_dim|encoder_dim|lru_width|conv_dim|hid_dim"
     r"|num_mel_bins_out|lm_hidden_size|attention_hidden_size|out_features_dim|word_embed_proj_dim|out_dim)", WIDTH),
]  # fmt: skip
_PATTERNS = [(re.compile(pattern), size) for pattern, size in _SIZES]
_LEFT_OUT = ("model_type", "transformers_version", "id2label", "label2id", "architectures", "dtype",
             "out_features", "out_indices", "stage_names", "per_layer_config")  # fmt: skip
_DEPTH_NAME = re.compile(_DEPTHS)
_WIDTH_NAME = re.compile(r"hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim")


class Way(Enum):
    """How to shrink: what fits most types, what keeps all proportions, and depth alone."""

    SMALL = "every width 32"
    SCALED = "every width by the same factor"
    SHALLOW = "fewer layers, the widths as they are"


def tiny_config(model_type: str, way: Way = Way.SMALL, *, taps: bool = False) -> PreTrainedConfig:
    """Return the shrunk config of a model type; with ``taps`` one whose heads take hidden states of several layers."""
    config = _default_config(model_type)
    return type(config)(**_Shrinker(config, way, taps=taps and _has_taps(config)).fields())


def settings_to_try(config: PreTrainedConfig) -> dict[str, Any]:
    """Return other values of the fields that may tell layers apart by their places, one at a time."""
    tried: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, bool) and re.search(r"layer|idx|share|every|scale|alternat|interleav|parallel", name):
            tried[name] = not value
        elif type(value) is int and re.search(r"every|interval|_(step|pattern|freq|frequency|period|replace)$", name):
            tried[name] = 1 if value == 2 else 2
    return tried


def _has_taps(config: PreTrainedConfig) -> bool:
    fields = vars(config)
    parts = [part for part in fields.values() if isinstance(part, PreTrainedConfig)]
    own = any(name in fields for name in (*LAYER_TAPS, "stage_names")) or config.model_type in TRAILING_TAPS
    return own or any(map(_has_taps, parts))


def _default_config(model_type: str) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    if parts := _PARTS.get(model_type):
        configs = {name: CONFIG_MAPPING[part]().to_dict() for name, part in parts.items()}
        if model_type.endswith("encoder-decoder"):
            configs["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
        return config_class(**configs)
    return config_class(**_NEEDED.get(model_type, {}))


# Fields without a usable default, or whose default has layers of one kind alone.
_NEEDED: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "informer": {"prediction_length": 4, "context_length": 8},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "attention"]},
    "bamba": {"attn_layer_indices": [1, 2]},
}


# Composite types that have no default parts.
_PARTS = {
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "gpt2"},
    "vision-text-dual-encoder": {"vision_config": "vit", "text_config": "bert"},
    "musicgen": {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_decoder"},
    "musicgen_melody": {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_melody_decoder"},
}


class _Shrinker:
    """Shrink the fields of one config."""

    def __init__(self, config: PreTrainedConfig, way: Way, *, taps: bool) -> None:
        self.config = config
        self.way = way
        self.taps = taps
        self.depth = DEPTH + 2 if taps else DEPTH
        sizes = {name: value for name, value in vars(config).items() if type(value) is int}
        self.depths = {value for name, value in sizes.items() if _DEPTH_NAME.fullmatch(name)}
        widest = max((value for name, value in sizes.items() if _WIDTH_NAME.fullmatch(name)), default=0)
        self.factor = max(1, 2 ** max(0, (widest // 128).bit_length() - 1))

    def fields(self) -> dict[str, Any]:
        """Return the fields of the shrunk config."""
        fields: dict[str, Any] = {}
        for name, value in self.config.to_dict().items():
            part = vars(self.config).get(name)  # getattr refuses what single layers have otherwise
            if isinstance(part, PreTrainedConfig):
                fields[name] = {**_Shrinker(part, self.way, taps=self.taps).fields(), "model_type": part.model_type}
            elif name not in _LEFT_OUT:
                fields[name] = self._shrunk(name, value)
        own = vars(self.config)
        if self.taps and (own.get("out_indices") or len(own.get("stage_names") or ()) - 1 in self.depths):
            fields["out_indices"] = self._spread(4)
        return fields

    def _spread(self, count: int) -> list[int]:
        """Return numbers of layers that are spread over all."""
        return [1 + place * (self.depth - 2) // max(count - 1, 1) for place in range(count)]

    def _shrunk(self, name: str, value: Any) -> Any:
        if name == "num_blocks" and self.config.model_type in TRAILING_TAPS:
            return 3  # of the last layers
        if name == "merge_index":
            return 0  # which comes before the layers whose states are taken
        if self.taps and name in LAYER_TAPS:
            return type(value)(self._spread(len(value))) if isinstance(value, list | tuple) else min(value, 1)
        if re.fullmatch(r".*feature_layers?", name) and value is not None:
            return [-1] * len(value) if isinstance(value, list | tuple) else -1  # see page.py
        if name == "num_kv_shared_layers":
            return 0  # see page.py
        if "deepstack" in name and isinstance(value, list | tuple):
            return type(value)()  # see page.py
        if isinstance(value, list | tuple):
            return self._shrunk_list(name, value)
        if isinstance(value, float) and _is_drop_rate(name):
            return 0.0
        if name == "rope_parameters" and isinstance(value, dict):
            return self._shrunk_rope(value)
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if name.endswith(("token_id", "token_index")) and value >= VOCABULARY:
            return VOCABULARY - 1 - sum(map(ord, name)) % 20  # another one for each kind of token
        if "key_value_heads" in name and value == vars(self.config).get("num_attention_heads"):
            return self._small("num_attention_heads", value)
        return self._small(name, value)

    def _shrunk_rope(self, value: dict[str, Any]) -> dict[str, Any]:
        """Leave out the share of a head that is rotated where the sizes of both parts are fields of their own."""
        if self.way is Way.SMALL and hasattr(self.config, "qk_rope_head_dim"):
            return {name: part for name, part in value.items() if name != "partial_rotary_factor"}
        return value

    def _small(self, name: str, value: int) -> int:
        size = next((size for pattern, size in _PATTERNS if pattern.fullmatch(name)), 0)
        if self.way is Way.SCALED and _is_width(name) and value % self.factor == 0:
            return value // self.factor
        if self.way is not Way.SMALL and (size not in (DEPTH, VOCABULARY, LENGTH, 2) or _is_head_count(name)):
            return value
        counts_layers = _DEPTH_NAME.fullmatch(name)
        small = self.depth if counts_layers else size
        return small if size and value > 0 and (value > size or counts_layers) else value

    def _shrunk_list(self, name: str, value: Any) -> Any:
        if value and len(value) in self.depths and len(value) > 1 and not name.startswith("depths"):
            return type(value)(_few(value, self.depth))
        if value and all(type(item) is int for item in value):
            if re.search(r"layer_ids|idxs|ind(ex|ic)es|_layers", name) and name != "out_indices":
                return [1, 2] if max(value) >= DEPTH else value
            return type(value)(self._small(name.removesuffix("s"), self._small(name, item)) for item in value)
        return value


def _is_head_count(name: str) -> bool:
    return "head" in name and "dim" not in name


def _is_width(name: str) -> bool:
    return any(pattern.fullmatch(name) and size in (WIDTH, INNER, HEAD_WIDTH, 16) for pattern, size in _PATTERNS)


def _few(values: Any, depth: int) -> list[Any]:
    """Return few entries of a list with one a layer: those of the first kind, then of each other kind, if any."""
    kinds = list(dict.fromkeys(values if all(_hashable(value) for value in values) else [0]))
    if len(kinds) < 2:
        return list(values[:depth])
    return sorted((kinds * depth)[:depth], key=kinds.index)


def _hashable(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _is_drop_rate(name: str) -> bool:
    return any(word in name for word in ("drop", "mask_time_prob", "mask_feature_prob")) or name.endswith(
        "jitter_noise"
    )
