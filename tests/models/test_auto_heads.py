"""Auto classes of images, speech and all else: each task of transformers has ours, and it drops, cuts and loads."""

import copy

import pytest
import torch
import transformers
from transformers import ViTConfig, Wav2Vec2Config, WhisperConfig

import hf_layerdrop
from conftest import assert_same_tensors
from hf_layerdrop import layerdrop_state, prune_layers
from hf_layerdrop.errors import UnsupportedModelError

SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
VIT = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3)
WAV2VEC2 = Wav2Vec2Config(
    **SMALL,
    vocab_size=12,
    conv_dim=(8, 8),
    conv_kernel=(4, 3),
    conv_stride=(2, 2),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    classifier_proj_size=8,
    mask_time_prob=0.0,
    layerdrop=0.3,
)
WHISPER = WhisperConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=4,
    decoder_layers=4,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    num_mel_bins=8,
    max_source_positions=10,
    max_target_positions=20,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    begin_suppress_tokens=None,
)
PIXELS = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
SOUND = {"input_values": torch.randn(2, 200, generator=torch.Generator().manual_seed(0))}
SPEECH = {
    "input_features": torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]]),
}
TASKS = [
    ("ImageClassification", VIT, PIXELS),
    ("MaskedImageModeling", VIT, PIXELS),
    ("AudioClassification", WAV2VEC2, SOUND),
    ("AudioFrameClassification", WAV2VEC2, SOUND),
    ("AudioXVector", WAV2VEC2, SOUND),
    ("CTC", WAV2VEC2, SOUND),
    ("SpeechSeq2Seq", WHISPER, SPEECH),
]


def test_each_auto_class_of_transformers_has_ours():
    theirs = {name for name in dir(transformers) if name.startswith("AutoModel")} - {"AutoModelWithLMHead"}
    ours = {name for name in hf_layerdrop._HOME_OF if name.startswith("AutoLayerDropModel")}
    assert {name.replace("AutoModel", "AutoLayerDropModel") for name in theirs} == ours
    for name in ours:
        assert getattr(hf_layerdrop, name).auto_class is getattr(transformers, name.replace("LayerDrop", ""))


@pytest.mark.parametrize(("task", "config", "inputs"), TASKS, ids=[task for task, _, _ in TASKS])
def test_a_model_of_the_task_drops_layers_and_is_cut_while_loading(task, config, inputs, tmp_path):
    torch.manual_seed(0)
    auto = getattr(hf_layerdrop, f"AutoLayerDropModelFor{task}")
    source = getattr(transformers, f"AutoModelFor{task}").from_config(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    source.save_pretrained(tmp_path)

    whole = auto.from_pretrained(tmp_path, layerdrop=0.5)
    assert isinstance(whole, type(source))
    assert layerdrop_state(whole).drops
    assert_same_tensors(whole.state_dict(), source.state_dict())

    cut = auto.from_pretrained(tmp_path, keep_layers=2).eval()
    pruned = prune_layers(source.eval(), 2)
    assert_same_tensors(cut.state_dict(), pruned.state_dict())
    with torch.no_grad():
        one, other, all_layers = (model(**inputs)[0] for model in (cut, pruned, whole.eval()))
    assert torch.equal(one, other)
    assert not torch.equal(one, all_layers)


def test_a_model_of_another_task_is_refused_by_the_name_of_the_class():
    with pytest.raises(UnsupportedModelError, match="has no AutoModelForCTC"):
        hf_layerdrop.AutoLayerDropModelForCTC.from_config(VIT)
