"""A model's own LayerDrop, wherever the model reads it: taken over, switched off, and put back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import AutoLayerDropModel, inject_layerdrop, layerdrop_state, prune_layers, remove_layerdrop
from hf_layerdrop.architectures.families import NATIVE_RATE
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.injection.native import native_rates

RATE = 0.6
_SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.3,
    "layerdrop": RATE,
    "mask_time_prob": 0.0,
}
_ADAPTED = {**_SPEECH, "add_adapter": True, "num_adapter_layers": 3, "output_hidden_size": 16}
_WAVE = {"input_values": (2, 900)}
_TEXT_TO_TEXT = {"encoder_layerdrop": RATE, "decoder_layerdrop": RATE}
_SEAMLESS = {
    "vocab_size": 60, "t2u_vocab_size": 60, "hidden_size": 16, "encoder_layers": 3, "decoder_layers": 3,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "speech_encoder_layers": 3, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 32,
    "t2u_encoder_layers": 3, "t2u_decoder_layers": 3, "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "t2u_encoder_ffn_dim": 32, "t2u_decoder_ffn_dim": 32, "feature_projection_input_dim": 16, "num_adapter_layers": 1,
    "unit_hifi_gan_vocab_size": 60, "unit_embed_dim": 8, "lang_embed_dim": 8, "spkr_embed_dim": 8,
    "upsample_initial_channel": 32, "adaptor_dropout": 0.0, "speech_encoder_dropout": 0.0,
    "speech_encoder_layerdrop": RATE,
    "encoder_layerdrop": RATE, "decoder_layerdrop": RATE, "variance_predictor_embed_dim": 16,
    "variance_predictor_hidden_dim": 16, "char_vocab_size": 60,
}  # fmt: skip
# Class, settings, shapes of inputs (whole numbers for ids), the stacks whose rates are taken over, the fields that say.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]], set[str]]] = {
    "wav2vec2": ("Wav2Vec2Model", _SPEECH, _WAVE, {"encoder"}),
    "wav2vec2, stable": ("Wav2Vec2Model", {**_SPEECH, "do_stable_layer_norm": True}, _WAVE, {"encoder"}),
    "wav2vec2, adapter": ("Wav2Vec2Model", _ADAPTED, _WAVE, {"encoder"}),
    "wavlm": ("WavLMModel", _SPEECH, _WAVE, {"encoder"}),
    "hubert": ("HubertModel", _SPEECH, _WAVE, {"encoder"}),
    "sew": ("SEWModel", _SPEECH, _WAVE, {"encoder"}),
    "unispeech": ("UniSpeechModel", _SPEECH, _WAVE, {"encoder"}),
    "unispeech-sat": ("UniSpeechSatModel", _SPEECH, _WAVE, {"encoder"}),
    "data2vec-audio": ("Data2VecAudioModel", {**_SPEECH, "conv_pos_kernel_size": 3}, _WAVE, {"encoder"}),
    "wav2vec2-conformer": ("Wav2Vec2ConformerModel", _SPEECH, _WAVE, {"encoder"}),
    "wav2vec2-bert": (
        "Wav2Vec2BertModel",
        {**_ADAPTED, "feature_projection_input_dim": 16},
        {"input_features": (2, 40, 16)},
        {"encoder", "layers"},
    ),
    "bart": (
        "BartModel",
        {**_TEXT_TO_TEXT, "d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "vocab_size": 60, "init_std": 0.3}
        | {f"{stack}_{field}": 2 for stack in ("encoder", "decoder") for field in ("attention_heads", "ffn_dim")},
        {"input_ids": (2, 9)},
        {"encoder", "decoder"},
    ),
    "xglm": (
        "XGLMModel",
        {"vocab_size": 60, "d_model": 16, "num_layers": 4, "attention_heads": 2, "ffn_dim": 32, "layerdrop": RATE},
        {"input_ids": (2, 9)},
        {"layers"},
    ),
    "qwen2-audio": (
        "Qwen2AudioEncoder",
        {"d_model": 16, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8}
        | {"max_source_positions": 20, "encoder_layerdrop": RATE},
        {"input_features": (2, 8, 40)},
        {"layers"},
    ),
    "seamless_m4t, text": (
        "SeamlessM4TForTextToText",
        _SEAMLESS,
        {"input_ids": (2, 9), "decoder_input_ids": (2, 5)},
        set(),
    ),
    "seamless_m4t, speech": (
        "SeamlessM4TForSpeechToText",
        _SEAMLESS,
        {"input_features": (2, 40, 16), "decoder_input_ids": (2, 5)},
        set(),
    ),
    "seamless_m4t_v2": (
        "SeamlessM4Tv2ForTextToSpeech",
        _SEAMLESS,
        {"input_ids": (2, 9), "decoder_input_ids": (2, 5)},
        set(),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def build(case: str, **changes: Any) -> PreTrainedModel:
    name, settings, _, _ = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**{**settings, **changes}))
    for module in model.modules():
        for field, value in vars(module).items():
            if "dropout" in field and isinstance(value, float):
                setattr(module, field, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def output(model: PreTrainedModel, case: str, generator: int) -> torch.Tensor:
    """Run a training forward, with the global generators in one of their states."""
    made = torch.Generator().manual_seed(1)
    batch = {
        name: torch.randint(3, 50, shape, generator=made)
        if name.endswith("ids")
        else torch.randn(shape, generator=made)
        for name, shape in CASES[case][2].items()
    }
    torch.manual_seed(generator)
    np.random.seed(generator)
    random.seed(generator)
    return next(value for value in model(**batch).values() if torch.is_tensor(value))


def at_two_states(model: PreTrainedModel, case: str) -> bool:
    """Tell whether the output is the same whatever the global generators say."""
    first = output(model, case, 0)
    return all(torch.equal(first, output(model, case, generator)) for generator in range(1, 5))


def own_rates(model: PreTrainedModel) -> list[float]:
    holders: list[Any] = list(model.modules())
    holders += [part.config for part in model.modules() if isinstance(getattr(part, "config", None), PreTrainedConfig)]
    return [value for holder in holders for name, value in vars(holder).items() if NATIVE_RATE.fullmatch(name)]


def test_at_our_rate_0_no_global_generator_decides_what_runs(case: str) -> None:
    model = build(case)
    before = own_rates(model)
    assert not at_two_states(model, case)  # its own dice are thrown
    inject_layerdrop(model, 0.0)
    assert at_two_states(model, case)
    assert not any(own_rates(model))
    remove_layerdrop(model)
    assert own_rates(model) == before
    assert not at_two_states(model, case)


def test_injecting_and_removing_touch_no_random_stream(case: str) -> None:
    model = build(case)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    inject_layerdrop(model, 0.5)
    remove_layerdrop(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_the_rates_of_stacks_are_taken_over(case: str) -> None:
    model = build(case)
    found = native_rates(model)
    stacks = CASES[case][3] or {name for name in depths_of(model) if "adapter" not in name}  # those draw none in plain
    assert found == dict.fromkeys(stacks, RATE)


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "sew", "unispeech", "hubert", "wav2vec2-bert"])
def test_the_auto_class_trains_with_the_models_own_rate_and_saves_it_for_us_alone(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path / "plain")
    model = AutoLayerDropModel.from_pretrained(tmp_path / "plain")
    assert layerdrop_state(model).rates["encoder"] == [RATE] * 4
    model.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert again.config.layerdrop == 0.0
    assert again.config.hf_layerdrop["rates"] == layerdrop_state(model).rates
    assert layerdrop_state(AutoLayerDropModel.from_pretrained(tmp_path / "ours")).rates == layerdrop_state(model).rates


def test_a_pruned_model_drops_nothing_after_a_plain_reload(case: str, tmp_path: Path) -> None:
    model = build(case)
    (name, stack), *_ = find_stacks(model).items()
    try:
        prune_layers(model, {name: list(range(stack.depth - 1))})
    except UnsupportedModelError:  # where a field counts two stacks; what is whole is cut to all of its layers
        prune_layers(model, "all")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert own_rates(again)
    assert not any(own_rates(again))


@pytest.mark.parametrize(
    "name", ["layerdrop", "encoder_layerdrop", "layer_drop", "speech_encoder_layerdrop", "t2u_layer_drop"]
)
def test_names_of_rates_are_known(name: str) -> None:
    assert NATIVE_RATE.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["layer_dropout", "layerdrop_prob", "hidden_dropout", "drop_path_rate", "hf_layerdrop"]
)
def test_names_of_other_things_are_left_alone(name: str) -> None:
    assert not NATIVE_RATE.fullmatch(name)
