"""The keyword arguments that transformers' ``from_pretrained`` takes, so that a type checker finds a misspelt one.

Transformers takes any name: one that it does not know it sets in the config, or hands to the class. Listed here are the
arguments that it documents, and the fields of configs that users set when they load a checkpoint to finetune it. Any
other field is set in a config of one's own, which goes in as ``config``. Nothing is checked when a program runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import GenerationConfig, PreTrainedConfig


class FromPretrained(TypedDict, total=False):
    """Arguments of ``from_pretrained`` beside ``layerdrop`` and ``keep_layers``."""

    config: PreTrainedConfig | str | os.PathLike[str] | None
    state_dict: Mapping[str, torch.Tensor] | None
    generation_config: GenerationConfig | None
    ignore_mismatched_sizes: bool
    output_loading_info: bool
    key_mapping: Mapping[str, str] | None

    # where the files are
    cache_dir: str | os.PathLike[str] | None
    force_download: bool
    gguf_file: str | None
    local_files_only: bool
    proxies: Mapping[str, str] | None
    revision: str
    subfolder: str
    token: str | bool | None
    trust_remote_code: bool | None
    code_revision: str | None
    use_safetensors: bool | None
    variant: str | None
    weights_only: bool
    adapter_name: str
    adapter_kwargs: Mapping[str, object] | None

    # how and where the weights are held
    attn_implementation: str | Mapping[str, str] | None
    device_map: str | int | torch.device | Mapping[str, int | str | torch.device] | None
    device_mesh: DeviceMesh | None
    disable_mmap: bool | None
    distributed_config: object
    dtype: str | torch.dtype | Mapping[str, str | torch.dtype] | None
    experts_implementation: str | Mapping[str, str] | None
    fusion_config: Mapping[str, bool | Mapping[str, object]] | None
    kernel_config: object
    max_memory: Mapping[int | str, int | str] | None
    offload_buffers: bool
    offload_folder: str | os.PathLike[str] | None
    quantization_config: object
    torch_dtype: str | torch.dtype | None
    tp_plan: str | Mapping[str, str] | None
    tp_size: int | None
    use_kernels: bool
    allow_all_kernels: bool
    tqdm_class: type | None

    # fields of the config: the head
    id2label: Mapping[int, str]
    label2id: Mapping[str, int]
    num_labels: int
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None

    # fields of the config: what is dropped and counted while training
    activation_dropout: float
    attention_dropout: float
    attention_probs_dropout_prob: float
    attn_pdrop: float
    classifier_dropout: float | None
    dropout: float
    dropout_rate: float
    embd_pdrop: float
    hidden_dropout: float
    hidden_dropout_prob: float
    resid_pdrop: float
    router_aux_loss_coef: float

    # fields of the config: what a forward gives, and how it is used
    add_cross_attention: bool
    bos_token_id: int | None
    decoder_start_token_id: int | None
    eos_token_id: int | list[int] | None
    is_decoder: bool
    output_attentions: bool
    output_hidden_states: bool
    output_router_logits: bool
    pad_token_id: int | None
    return_dict: bool
    tie_word_embeddings: bool
    use_cache: bool
    add_pooling_layer: bool  # of the class, not of the config


class FromConfig(TypedDict, total=False):
    """Arguments of ``from_config`` beside ``layerdrop``."""

    attn_implementation: str | Mapping[str, str] | None
    code_revision: str | None
    dtype: str | torch.dtype | None
    trust_remote_code: bool | None
    experts_implementation: str | Mapping[str, str] | None
