"""A cut in memory is what is saved and reloaded, whatever head the model has: a sample of what the walk tries."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext

import pytest
import transformers
from transformers import SiglipTextConfig, SiglipTextModel

from architectures.heads import check_cuts, check_dice, require_same_settings
from architectures.shrinking import tiny_config
from architectures.tiny import build_tiny, model_class
from hf_layerdrop import prune_layers
from hf_layerdrop.architectures import expressible
from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.architectures.families import cut_fields
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.architectures.walked import TRIED
from hf_layerdrop.errors import UnsupportedModelError

HEADS = {
    "depth_anything": "DepthAnythingForDepthEstimation",
    "beit": "BeitForSemanticSegmentation",
    "data2vec-vision": "Data2VecVisionForSemanticSegmentation",
    "dinov2": "Dinov2Backbone",
    "mllama": "MllamaForConditionalGeneration",
    "owlvit": "OwlViTForObjectDetection",
    "wav2vec2": "Wav2Vec2ForCTC",
    "whisper": "WhisperForAudioClassification",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "imagegpt": "ImageGPTForImageClassification",
    "gpt_neo": "GPTNeoForCausalLM",
}


@pytest.mark.parametrize("model_type", HEADS)
def test_a_cut_in_memory_is_what_is_reloaded(model_type) -> None:
    check_cuts(build_tiny(model_type, getattr(transformers, HEADS[model_type])))


COPYING = ["cpmant", "ctrl", "distilbert", "granite_speech", "lxmert", "udop", "xlnet", "gpt_neo", "bart"]


@pytest.mark.parametrize("model_type", COPYING)
def test_what_modules_copied_from_the_config_is_that_of_a_model_built_from_the_new_one(model_type) -> None:
    model = build_tiny(model_type).model
    depths = depths_of(model)
    prune_layers(model, {name: range(depth) if name == "projector" else [0, 2] for name, depth in depths.items()})
    require_same_settings(model, type(model)(model.config))


@pytest.mark.parametrize(
    ("chosen", "kept", "expected"),
    [([1, 4], (1, 3), [0, 2]), ([2, 4], (1, 3), [1, 2]), ([-1], (0,), [1]), ([0, 2, 3], (0, 1, 2), [0, 2, 3])],
)
def test_a_backbone_gives_what_the_kept_layers_give_up_to_each_stage(chosen, kept, expected) -> None:
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    cut = cut_fields({"stage_names": names, "_out_indices": chosen}, 4, kept)
    assert cut["_out_indices"] == expected
    assert cut["_out_features"] == [names[place] for place in expected]


def test_two_stages_of_a_backbone_that_would_be_one_are_refused() -> None:
    model = build_tiny("depth_anything", transformers.DepthAnythingForDepthEstimation).model
    with pytest.raises(UnsupportedModelError, match=r"out_indices = .*keep a layer before each of them"):
        prune_layers(model, [0, 5])


def test_a_first_tap_without_a_layer_before_it_is_refused() -> None:
    model = build_tiny("mllama", transformers.MllamaForConditionalGeneration).model
    (name,) = [
        name for name, stack in find_stacks(model).items() if stack.path.endswith("vision_model.transformer.layers")
    ]
    kept = {other: list(range(depth)) for other, depth in depths_of(model).items()} | {name: [4, 5]}
    with pytest.raises(UnsupportedModelError, match="keep a layer before each of them"):
        prune_layers(model, kept)


@pytest.mark.parametrize(
    ("model_type", "refused", "passing"),
    [
        ("molmo2", "vision=[0, 2]", "text=[0, 2]"),
        ("deepseek_vl_hybrid", "high_res_vision=[0, 2, 3]", "high_res_vision=[0, 1, 3]"),
        ("phi4_multimodal", None, "vision=[0, 2]"),
        ("granite_speech", "encoder=[0, 1, 2]", "encoder=[1, 2, 3]"),
        ("granite_speech", "encoder=[3]", "encoder=[0, 2]"),
    ],
)
def test_what_cannot_be_told_of_a_cut_is_refused(model_type, refused, passing) -> None:
    config = tiny_config(model_type)
    model = built_on_meta(model_class(config), config)
    for said, allowed in ((refused, False), (passing, True)):
        if said:
            name, layers = said.split("=")
            kept = {other: list(range(depth)) for other, depth in depths_of(model).items()} | {name: json.loads(layers)}
            with nullcontext() if allowed else pytest.raises(UnsupportedModelError, match="keep"):
                prune_layers(model, kept)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("bart", "encoder_layerdrop, decoder_layerdrop"),
        ("seamless_m4t", "encoder_layerdrop, decoder_layerdrop, speech_encoder_layerdrop"),
        ("qwen2_audio", "audio_config.encoder_layerdrop"),
        ("wav2vec2", "layerdrop"),
        ("data2vec-audio", "layerdrop"),
        ("wav2vec2-conformer", "layerdrop"),
        ("bert", ""),
    ],
)
def test_a_models_own_dice_are_found_and_do_not_fall_at_rate_0(model_type, fields) -> None:
    assert check_dice(model_type) == (fields and f"its own LayerDrop: {fields}")


def test_a_type_that_nobody_tried_is_warned_of_once(caplog) -> None:
    expressible._warned.clear()
    assert "reformer" not in TRIED
    with caplog.at_level(logging.WARNING):
        for model_type in ("bert", "reformer", "reformer"):
            prune_layers(build_tiny(model_type).model, [0, 2])
    said = [record.getMessage() for record in caplog.records if "were not tried" in record.getMessage()]
    assert len(said) == 1
    assert "'reformer'" in said[0]


def test_a_part_is_as_tried_as_its_composite(caplog, monkeypatch) -> None:
    expressible._warned.clear()
    monkeypatch.setattr(expressible, "TRIED", frozenset({"siglip"}))
    text = SiglipTextConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    assert text.model_type != "siglip"
    with caplog.at_level(logging.WARNING):
        prune_layers(SiglipTextModel(text), [0, 2])
    assert "tried" not in caplog.text


def test_a_cut_that_is_refused_is_not_warned_of(caplog, monkeypatch) -> None:
    expressible._warned.clear()
    monkeypatch.setattr(expressible, "TRIED", frozenset())
    model = build_tiny("diffllama").model
    with caplog.at_level(logging.WARNING):
        with pytest.raises(UnsupportedModelError, match="would build layer"):
            prune_layers(model, [0, 2])
        assert "were not tried" not in caplog.text
        prune_layers(model, [0, 1])
    assert "were not tried" in caplog.text
