"""Who speaks of layers by number, outside of their stack's own config, is told of a cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from hf_layerdrop import inject_layerdrop, load_checkpoint, prune_layers, save_pruned, set_rates, sub_network
from hf_layerdrop.architectures.layer_numbers import renumber_quantization
from hf_layerdrop.architectures.stacks import depths_of, find_stacks
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.injection.inject import layerdrop_state

DEPTH = 6
TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}


def clipseg() -> PreTrainedModel:
    config = transformers.CLIPSegConfig(
        text_config={**TEXT, "eos_token_id": 2, "max_position_embeddings": 12},
        vision_config=VISION,
        extract_layers=[1, 3, 4],
        reduce_dim=8,
        projection_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return transformers.CLIPSegForImageSegmentation(config)


def dpt() -> PreTrainedModel:
    config = transformers.DPTConfig(
        **VISION,
        backbone_out_indices=[0, 2, 3, 5],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        readout_type="ignore",
        reassemble_factors=[4, 2, 1, 0.5],
    )
    return transformers.DPTForDepthEstimation(config)


def seggpt() -> PreTrainedModel:
    config = transformers.SegGptConfig(
        **{**VISION, "image_size": [16, 8]},
        intermediate_hidden_state_indices=[1, 2, 4, 5],
        decoder_hidden_size=8,
        pretrain_image_size=8,
        merge_index=0,
        drop_path_rate=0.0,
        mlp_dim=32,
    )
    return transformers.SegGptForImageSegmentation(config)


def llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        text_config={**TEXT, "model_type": "llama", "num_key_value_heads": 2},
        image_token_index=39,
        image_seq_length=16,
        vision_feature_layer=3,
    )
    return transformers.LlavaForConditionalGeneration(config)


def pixels(size: tuple[int, int] = (16, 16), rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(1))


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 3, 2]])
    if isinstance(model, transformers.CLIPSegForImageSegmentation):
        return {"input_ids": ids, "pixel_values": pixels()}
    if isinstance(model, transformers.SegGptForImageSegmentation):
        return {"pixel_values": pixels((8, 8)), "prompt_pixel_values": pixels((8, 8)), "prompt_masks": pixels((8, 8))}
    if isinstance(model, transformers.LlavaForConditionalGeneration):
        return {"input_ids": torch.cat([torch.full((2, 16), 39), ids], 1), "pixel_values": pixels()}
    return {"pixel_values": pixels()}


def output_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs_of(model))
    return next(found[name] for name in ("logits", "predicted_depth", "pred_masks") if name in found)


MODELS = {"clipseg": clipseg, "dpt": dpt, "seggpt": seggpt, "llava": llava}
# keeps and numbers that the field has afterwards
CUTS: dict[str, tuple[list[int], str, Any]] = {
    "clipseg": ([1, 2, 4], "extract_layers", [0, 1, 2]),
    "dpt": ([0, 2, 3, 5], "backbone_out_indices", [0, 1, 2, 3]),
    "seggpt": ([0, 1, 2, 4, 5], "intermediate_hidden_state_indices", [1, 2, 3, 4]),
    "llava": ([0, 2, 5], "vision_feature_layer", 2),
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def new(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def kept_of(model: PreTrainedModel, layers: list[int]) -> dict[str, list[int]]:
    stack = next(name for name, depth in depths_of(model).items() if depth == DEPTH)
    return {stack: layers}


def test_a_head_takes_the_states_that_the_whole_model_has_when_the_layers_hand_their_input_on(
    name: str, tmp_path: Path
) -> None:
    """The whole model with rates of 0 and 1 gives what the cut gives: in memory, in a block, saved and loaded."""
    layers, field, expected = CUTS[name]
    whole = new(name)
    before = copy.deepcopy(getattr(whole.config, field))
    kept = kept_of(whole, layers)
    ((stack, _),) = kept.items()
    others = [other for other in depths_of(whole) if other != stack]
    rates = {stack: [float(layer not in layers) for layer in range(DEPTH)], **dict.fromkeys(others, 0.0)}
    dropping = copy.deepcopy(whole)
    inject_layerdrop(dropping, rates)
    set_rates(dropping, rates)
    dropping.train()
    for part in dropping.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    skipped = output_of(dropping)
    assert any(layers_run < DEPTH for layers_run in [layerdrop_state(dropping).draws[stack].layers_run])

    with sub_network(whole, kept):
        inside = output_of(whole)
        assert getattr(whole.config, field) == expected
    assert getattr(whole.config, field) == before
    pruned = copy.deepcopy(whole)
    prune_layers(pruned, kept)
    pruned.save_pretrained(tmp_path / "pruned")
    plain = type(whole).from_pretrained(tmp_path / "pruned").eval()
    whole.save_pretrained(tmp_path / "whole")
    loaded = load_checkpoint(tmp_path / "whole", keep_layers=kept).eval()
    for found in (inside, output_of(pruned), output_of(plain), output_of(loaded)):
        assert torch.allclose(found, skipped, atol=1e-5)
    assert not torch.allclose(inside, output_of(whole), atol=1e-3)


@pytest.mark.parametrize("name", ["dpt", "seggpt"])
def test_a_cut_that_takes_two_states_for_one_is_refused(name: str) -> None:
    model = new(name)
    with pytest.raises(UnsupportedModelError, match="keep a layer before each of them"):
        prune_layers(model, kept_of(model, [0, 5]))
    assert depths_of(model)["layers" if "layers" in depths_of(model) else next(iter(depths_of(model)))] == DEPTH


def test_the_model_without_the_head_is_cut_all_the_same() -> None:
    model = transformers.DPTModel(new("dpt").config)
    prune_layers(model, [0, 5])
    assert depths_of(model) == {"encoder": 2}


def whisper(**generation: Any) -> PreTrainedModel:
    config = transformers.WhisperConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=10,
        max_target_positions=10,
        num_mel_bins=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config._from_model_config = False  # or what it is given beside would not be read again
    for field, value in generation.items():
        setattr(model.generation_config, field, value)
    return model


def test_alignment_heads_follow_their_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heads, keep = [[1, 0], [2, 0], [3, 1]], {"encoder": "all", "decoder": [0, 1, 3]}
    expected = [[1, 0], [2, 1]]
    model = whisper(alignment_heads=heads)
    model.save_pretrained(tmp_path / "whole")
    with sub_network(model, keep):
        assert model.generation_config.alignment_heads == expected
    assert "alignment heads" not in caplog.text  # since they come back
    assert model.generation_config.alignment_heads == heads
    assert load_checkpoint(tmp_path / "whole", keep_layers=keep).generation_config.alignment_heads == expected
    save_pruned(tmp_path / "whole", tmp_path / "saved", keep_layers=keep, tokenizer=False)
    assert GenerationConfig.from_pretrained(tmp_path / "saved").alignment_heads == expected
    prune_layers(model, keep)
    assert model.generation_config.alignment_heads == expected
    assert "1 of 3 alignment heads" in caplog.text
    prune_layers(model, {"encoder": "all", "decoder": [0]})
    assert not hasattr(model.generation_config, "alignment_heads")
    assert "no times of words" in caplog.text


def test_exits_of_a_draft_follow_their_layers() -> None:
    model = whisper(assistant_early_exit=3)
    prune_layers(model, {"encoder": "all", "decoder": [0, 3]})
    assert model.generation_config.assistant_early_exit == 1


QUANTIZED = {
    "list of modules": (["model.layers.4", "lm_head"], ["model.layers.2", "lm_head"]),
    "parts of layers": (["model.layers.4.mlp.up_proj", "layers.5"], ["model.layers.2.mlp.up_proj", "layers.3"]),
    "layers that are gone": (["model.layers.2", "model.layers.3.mlp"], []),
    "no layers": (["lm_head", "embed_tokens", "mlp"], ["lm_head", "embed_tokens", "mlp"]),
    "keys of a dict": ({"model.layers.1.mlp": {"bits": 4}, "model.layers.2": {}}, {"model.layers.1.mlp": {"bits": 4}}),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_lists_of_a_quantizer_name_the_layers_by_their_new_numbers(case: str) -> None:
    given, expected = QUANTIZED[case]
    config = transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": DEPTH, "num_key_value_heads": 2})
    model = transformers.LlamaForCausalLM(config)
    field = "dynamic" if isinstance(given, dict) else "modules_to_not_convert"
    model.config.quantization_config = {"quant_method": "any", field: given}
    prune_layers(model, [0, 1, 4, 5])
    assert model.config.quantization_config == {"quant_method": "any", field: expected}


def test_the_config_object_of_a_quantizer_is_changed_in_a_copy() -> None:
    stacks = find_stacks(
        transformers.LlamaModel(transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 6, "num_key_value_heads": 2}))
    )
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model.layers.4"])
    changed = renumber_quantization(given, stacks, {"layers": [0, 1, 4, 5]})
    assert changed.llm_int8_skip_modules == ["model.layers.2"]
    assert given.llm_int8_skip_modules == ["model.layers.4"]
    assert changed.load_in_8bit


@pytest.mark.parametrize("pattern", [r"re:.*layers\.4\..*", r"+:.*\.18\..*gate.*", "model.layers.[0-4].mlp"])
def test_a_pattern_that_may_mean_layers_is_refused(pattern: str) -> None:
    config = transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": DEPTH, "num_key_value_heads": 2})
    model = transformers.LlamaForCausalLM(config)
    model.config.quantization_config = {"quant_method": "any", "ignore": [pattern]}
    with pytest.raises(UnsupportedModelError, match="name the modules one by one"):
        prune_layers(model, [0, 1])
    assert depths_of(model) == {"layers": DEPTH}


def test_a_quantized_checkpoint_that_names_layers_is_cut_in_memory_alone(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": DEPTH, "num_key_value_heads": 2})
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["model.layers.4"]}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="load the whole model and call prune_layers"):
        load_checkpoint(tmp_path, keep_layers=[0, 1, 4, 5])


def test_what_modules_copied_from_the_config_is_that_of_the_cut() -> None:
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=DEPTH, n_head=2, d_inner=16)
    model = transformers.XLNetModel(config)
    assert model.n_layer == DEPTH
    with sub_network(model, 4):
        assert model.n_layer == 4
    assert model.n_layer == DEPTH
    prune_layers(model, 3)
    assert model.n_layer == 3
