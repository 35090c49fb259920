"""Fields of configs with wrong values: taken, or refused in one sentence, and nothing is left behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from classifiers import save_classifier
from hf_layerdrop.models.auto import load_checkpoint
from strangers import SCALE, VALUES, answer, listing, taken_or_refused

SMALL = {"vocab_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "bert": save_classifier,
    "bart": lambda folder: BartForConditionalGeneration(
        BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
        )
    ).save_pretrained(folder),
    "gpt2": lambda folder: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=4, n_head=2, n_positions=32)
    ).save_pretrained(folder),
    "llama": lambda folder: LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_key_value_heads=2, max_position_embeddings=32, **SMALL)
    ).save_pretrained(folder),
    "t5": lambda folder: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
    ).save_pretrained(folder),
    "wav2vec2": lambda folder: Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=16,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            **SMALL,
        )
    ).save_pretrained(folder),
}


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("config") / request.param
    MODELS[request.param](folder)
    return request.param, folder


def wrong_configs(name, config):
    """Yield fields with a wrong value, another one with each field; all with all where time allows."""
    fields = sorted({*config, "dtype", "id2label", "auto_map", "quantization_config", "hf_layerdrop"})
    step = 1 if SCALE > 1 or name == "bert" else 4
    for number, field in list(enumerate(fields))[len(name) % step :: step]:
        for place in range(min(SCALE, len(VALUES))):
            value = VALUES[(number * 5 + place * 11 + len(name)) % len(VALUES)]
            yield field, value, {**config, field: value}


def test_wrong_values_are_taken_or_refused(family, capsys):
    name, folder = family
    good = (folder / "config.json").read_text()
    before = listing(folder.parent)
    failures = []
    try:
        for field, value, config in wrong_configs(name, json.loads(good)):
            (folder / "config.json").write_text(json.dumps(config))
            try:
                if answer(capsys, "inspect", folder) == 0:
                    taken_or_refused(lambda: load_checkpoint(folder))
                answer(
                    capsys,
                    "prune",
                    folder,
                    "--keep-layers",
                    "first:2",
                    "--output",
                    folder.parent / "out",
                    "--no-tokenizer",
                )
            except Exception as error:
                failures.append(f"{field} = {str(value)[:30]!r}: {type(error).__name__} {str(error)[:300]}")
            shutil.rmtree(folder.parent / "out", ignore_errors=True)
            assert listing(folder.parent) == before
    finally:
        (folder / "config.json").write_text(good)
    assert not failures, "\n".join(failures)


def swin(folder):
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 2], window_size=2)
    SwinForImageClassification(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "fields"),
    [
        *((swin, {"depths": depths}) for depths in ([2, 10**9, 1], [10**9] * 3, [2, 10**18, 1])),
        (MODELS["wav2vec2"], {"add_adapter": True, "num_adapter_layers": 10**9}),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_parts_without_number_are_not_built(save, fields, tmp_path, capsys):
    """Whatever field counts them: files that hold few weights belong to no model of a billion."""
    save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    answer(capsys, "inspect", tmp_path / "model")
    answer(capsys, "prune", tmp_path / "model", "--keep-layers", "1", "--output", tmp_path / "out", "--no-tokenizer")
    assert not (tmp_path / "out").exists()
