"""A T5 with fewer layers in its encoder than in its decoder: transformers makes its cache too short, so it has none."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from hf_layerdrop import AutoLayerDropModelForSeq2SeqLM, prune_layers
from hf_layerdrop.cli import run
from hf_layerdrop.pruning.generation_cache import NOTE
from hf_layerdrop.pruning.prune import sub_network

SHORT = {"encoder": [0, 2], "decoder": [0, 1, 3]}
FITS = {"encoder": [0, 2, 3], "decoder": [0, 1, 3]}
TINY = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "initializer_factor": 3.0}


def build(encoder=4, decoder=4):
    torch.manual_seed(0)
    config = T5Config(
        **TINY,
        num_layers=encoder,
        num_decoder_layers=decoder,
        decoder_start_token_id=0,
        eos_token_id=None,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config).eval()


def tokens_of(model, **settings):
    inputs = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    return model.generate(inputs, max_new_tokens=12, do_sample=False, **settings)


@pytest.fixture
def saved(tmp_path):
    build().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def expected():
    """The tokens of the cut model, which ran without a cache."""
    model = build()
    prune_layers(model, SHORT)
    tokens = tokens_of(model, use_cache=False)
    assert not torch.equal(tokens, tokens_of(build(), use_cache=False))
    return tokens


def test_transformers_still_needs_it():
    """When this fails, transformers counts the decoder's own layers, and generation_cache.py can go."""
    with pytest.raises(IndexError):
        tokens_of(build(encoder=2, decoder=3))


def cut_in_memory(saved, output):
    model = T5ForConditionalGeneration.from_pretrained(saved)
    prune_layers(model, SHORT)
    return model


def cut_while_loading(saved, output):
    return AutoLayerDropModelForSeq2SeqLM.from_pretrained(saved, keep_layers=SHORT)


def cut_as_files(saved, output):
    spec = "encoder=0,2;decoder=0,1,3"
    assert run(["prune", str(saved), "--keep-layers", spec, "--output", str(output), "--no-tokenizer"]) == 0
    return AutoModelForSeq2SeqLM.from_pretrained(output)


@pytest.mark.parametrize("cut", [cut_in_memory, cut_while_loading, cut_as_files])
def test_it_generates_the_same_tokens_and_so_does_its_checkpoint(cut, saved, expected, tmp_path):
    model = cut(saved, tmp_path / "out").eval()
    assert torch.equal(tokens_of(model), expected)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(tokens_of(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")), expected)


def test_in_place_it_generates_too_and_has_its_cache_back_afterwards(expected):
    model = build()
    before = model.generation_config.to_dict()
    with sub_network(model, SHORT):
        assert torch.equal(tokens_of(model), expected)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("cut", [cut_in_memory, cut_while_loading])
def test_it_is_said(cut, saved, caplog):
    cut(saved, None)
    assert "too short a cache in a T5ForConditionalGeneration" in caplog.text


def test_a_later_cut_that_makes_the_cache_deep_enough_brings_it_back(saved, tmp_path):
    before = build().generation_config.use_cache
    model = build()
    for keep in ({"encoder": 2}, {"decoder": 2}):
        prune_layers(model, keep)
        assert model.generation_config.use_cache is (False if "encoder" in keep else before)
    assert NOTE not in model.config.hf_layerdrop
    cut_while_loading(saved, None).save_pretrained(tmp_path / "short")
    again = AutoLayerDropModelForSeq2SeqLM.from_pretrained(tmp_path / "short", keep_layers={"decoder": 2})
    assert again.generation_config.use_cache is before
    assert torch.equal(tokens_of(again), tokens_of(again, use_cache=False))


def test_who_uses_no_cache_is_told_nothing(caplog):
    model = build()
    model.generation_config.use_cache = False
    prune_layers(model, SHORT)
    assert "too short a cache" not in caplog.text
    assert model.generation_config.use_cache is False


def test_a_cut_whose_cache_is_deep_enough_keeps_it(saved, caplog):
    model = AutoLayerDropModelForSeq2SeqLM.from_pretrained(saved, keep_layers=FITS)
    assert model.generation_config.use_cache is not False
    assert torch.equal(tokens_of(model, use_cache=True), tokens_of(model, use_cache=False))
    prune_layers(memory := build(), FITS)
    assert memory.generation_config.use_cache is not False
    assert "too short a cache" not in caplog.text
