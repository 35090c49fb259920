"""Make inputs for any model by looking: its main input, what its forward asks for, and the sizes in its config."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import torch
from transformers import PreTrainedModel

ROWS, TOKENS = 2, 7
Batch = dict[str, Any]


def candidate_batches(model: PreTrainedModel) -> Iterator[Batch]:
    """Yield inputs to try, the fullest first: which of them a model takes, only its forward knows."""
    variants = {name: values for name, values in _everything(model).items() if name in _asked(model)}
    main = [name for name in (model.main_input_name,) if name in variants]
    required = [name for name in _required(model) if name in variants]
    decoder = [name for name in ("decoder_input_ids",) if name in variants]
    text = [name for name in ("input_ids", "attention_mask") if name in variants]
    beside = [name for name in variants if name.endswith(("_mask", "grid_thw", "image_sizes", "bbox"))]
    wanted = ([*variants], [*text, *main, *required, *decoder], [*main, *beside, *required, *decoder],
              [*main, *required, *decoder], [*text, *required], main)  # fmt: skip
    seen: list[list[str]] = []
    for names in (list(dict.fromkeys(names)) for names in wanted):
        if names and names not in seen:
            seen.append(names)
            for values in islice(product(*(variants[name] for name in names)), 9):
                yield dict(zip(names, values, strict=True))


def _asked(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _required(model: PreTrainedModel) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    ordinary = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is p.empty and p.kind in ordinary]


def _everything(model: PreTrainedModel) -> dict[str, list[Any]]:
    """Return the forms that each input may have."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    text = config.get_text_config()

    shape = (ROWS, 2, TOKENS) if type(model).__name__.endswith("MultipleChoice") else (ROWS, TOKENS)

    def ids(vocabulary: int) -> torch.Tensor:
        return torch.randint(4, max(vocabulary // 2, 6), shape, generator=generator)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    vocabulary = _size(text, "vocab_size", default=40)
    channels = _size(config, "num_channels", "in_channels", "in_chans", default=3)
    height, width = _image_size(config)
    frames = _size(config, "num_frames", default=2)
    patch = _size(config, "patch_size", default=8)
    time = _size(config, "temporal_patch_size", default=1)
    image = values(ROWS, channels, height, width)
    video = values(ROWS, frames, channels, height, width)
    patches = values(ROWS * 16, channels * time * patch * patch)  # of images of 4 x 4 patches
    grid = torch.tensor([[1, 4, 4]] * ROWS)
    mels = _size(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim",
                 "feature_projection_input_dim", default=16)  # fmt: skip
    sound = values(ROWS, mels, 2 * _size(config, "max_source_positions", default=32))
    spectrum = values(ROWS, _size(config, "max_length", default=32), mels)
    videos_first = model.main_input_name == "pixel_values_videos" or _has(config, "num_frames", "tubelet_size")
    tiles = _size(config, "max_num_tiles", default=0)
    lags = max(getattr(config, "lags_sequence", None) or [0])
    length = _size(config, "context_length", default=16) + lags
    series = values(ROWS, length, _size(config, "num_input_channels", default=1))
    if _size(config, "input_size", default=0) == 1:
        series = series[..., 0]
    future = _size(config, "prediction_length", default=4)
    text_ids = ids(vocabulary)
    images = (
        [video, image] if videos_first else [patches, image] if "image_grid_thw" in _asked(model) else [image, video]
    )
    if tiles:
        images = [values(ROWS, 1, tiles, channels, height, width)]
    everything: Batch = {
        "input_ids": text_ids,
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "decoder_input_ids": ids(_size(config.get_text_config(decoder=True), "vocab_size", default=vocabulary)),
        "pixel_values_videos": video,
        "image_grid_thw": grid,
        "grid_thw": grid,
        "image_sizes": torch.tensor([[height, width]] * ROWS),
        "input_features_mask": torch.ones(ROWS, sound.shape[-1], dtype=torch.long),
        "feature_attention_mask": torch.ones(ROWS, sound.shape[-1], dtype=torch.long),
        "bbox": torch.tensor([1, 2, 5, 9]).expand(ROWS, TOKENS, 4).contiguous(),
        "past_values": series,
        "past_time_features": values(ROWS, length, _size(config, "num_time_features", default=0)),
        "past_observed_mask": torch.ones_like(series),
        "future_values": values(ROWS, future),
        "future_time_features": values(ROWS, future, _size(config, "num_time_features", default=0)),
        "prompt_pixel_values": image,
        "prompt_masks": image,
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(ROWS, 1, tiles, dtype=torch.long),
        "cross_attention_mask": torch.ones(ROWS, TOKENS, 1, tiles, dtype=torch.long),
        "visual_feats": values(ROWS, 5, _size(config, "visual_feat_dim", default=8)),
        "visual_pos": values(ROWS, 5, 4),
        "visual_embeds": values(ROWS, 5, _size(config, "visual_embedding_dim", default=8)),
    }
    return {
        **{name: [value] for name, value in everything.items()},
        "pixel_values": [*images, patches],
        "hidden_states": [patches],
        "input_features": [sound, sound.transpose(1, 2).contiguous(), spectrum, spectrum[:, None]],
        "input_values": [values(ROWS, 1600), values(ROWS, 1, 1600), values(ROWS, 8000), spectrum],
    }


def feature_calls(model: PreTrainedModel) -> Iterator[tuple[str, Batch]]:
    """Yield methods that run the parts of a composite model which plain text leaves out, with inputs to try."""
    inputs = _everything(model)
    for method in ("get_image_features", "get_audio_features", "get_video_features"):
        if not hasattr(model, method):
            continue
        asked = inspect.signature(getattr(model, method)).parameters
        names = [name for name in inputs if name in asked]
        plain = [name for name in names if not name.endswith(("_mask", "_sizes"))]
        for chosen in (names, plain):
            for values in islice(product(*(inputs[name] for name in chosen)), 9):
                yield method, dict(zip(chosen, values, strict=True))


def _size(config: Any, *names: str, default: int) -> int:
    for part in (config, *_parts(config)):
        for name in names:
            if isinstance(value := getattr(part, name, None), int):
                return value
    return default


def _has(config: Any, *names: str) -> bool:
    return any(hasattr(config, name) for name in names)


def _parts(config: Any) -> list[Any]:
    return [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]


def _image_size(config: Any) -> tuple[int, int]:
    for part in (config, *_parts(config)):
        for name in ("image_size", "img_size", "input_size", "input_image_size"):
            size = getattr(part, name, None)
            if isinstance(size, int) and size > 3:
                return size, size
            if isinstance(size, list | tuple) and len(size) == 2:
                return size[0], size[1]
    return 32, 32
