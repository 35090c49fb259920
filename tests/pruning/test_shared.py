"""A sub-network on the weights of the whole model: nothing is copied, both run, and one drafts for the other."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import BART
from hf_layerdrop import inject_layerdrop, prune_layers, shared_sub_network
from hf_layerdrop.errors import KeepLayersError, LayerDropStateError
from hf_layerdrop.injection.inject import layerdrop_state

NO_END = {"eos_token_id": None, "pad_token_id": 0}
SMALL = {"vocab_size": 60, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.3, **NO_END}
BUILDERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, hidden_size=16, n_positions=80, bos_token_id=1)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, hidden_size=16, intermediate_size=32, max_position_embeddings=80)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(**{**BART, "max_position_embeddings": 80, "eos_token_id": None, "forced_eos_token_id": None})
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=60,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=4,
            num_heads=2,
            initializer_factor=3.0,
            decoder_start_token_id=0,
            **NO_END,
        )
    ),
}


@pytest.fixture(params=BUILDERS)
def model(request):
    torch.manual_seed(0)
    whole = BUILDERS[request.param]().eval()
    inject_layerdrop(whole, 0.5)
    return whole


def cut_of(model, kept):
    return dict.fromkeys(layerdrop_state(model).depths, kept)


def decoder_of(model, kept):
    return {"decoder": kept} if model.config.is_encoder_decoder else kept


def outputs(model, tokens):
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(tokens, **more).logits


def test_it_is_the_pruned_model_on_the_weights_of_the_whole_one(model):
    tokens = torch.randint(3, 60, (2, 9))
    before, config = outputs(model, tokens), model.config.to_dict()
    shallow = shared_sub_network(model, cut_of(model, "1,3"))
    assert {id(weight) for weight in shallow.parameters()} < {id(weight) for weight in model.parameters()}
    assert not shallow.training
    own = outputs(shallow, tokens)
    assert torch.equal(outputs(model, tokens), before)
    assert model.config.to_dict() == config
    assert layerdrop_state(model).rates
    with pytest.raises(LayerDropStateError):
        layerdrop_state(shallow)
    prune_layers(model, cut_of(model, "1,3"))
    assert torch.equal(outputs(model, tokens), own)
    assert not torch.equal(own, before)


def test_training_the_whole_model_trains_its_sub_networks(model):
    shallow = shared_sub_network(model, cut_of(model, "0,2"))
    tokens = torch.randint(3, 60, (2, 9))
    before = outputs(shallow, tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert not torch.equal(outputs(shallow, tokens), before)


def test_a_model_drafts_for_itself_with_layers_that_are_no_prefix(model):
    draft = shared_sub_network(model, decoder_of(model, "1,3"))
    calls = []
    model.get_decoder().register_forward_hook(lambda *_: calls.append("whole"))
    draft.get_decoder().register_forward_hook(lambda *_: calls.append("draft"))
    tokens = torch.randint(3, 60, (1, 7))
    settings = {"max_new_tokens": 20, "do_sample": False}
    alone = model.generate(tokens, **settings)
    assert calls == ["whole"] * len(calls)
    calls.clear()
    assert torch.equal(model.generate(tokens, assistant_model=draft, **settings), alone)
    assert {"draft", "whole"} == set(calls)


def test_layers_that_are_not_there_are_refused_and_nothing_changes(model):
    before = model.config.to_dict()
    with pytest.raises(KeepLayersError, match="7"):
        shared_sub_network(model, decoder_of(model, [7]))
    assert model.config.to_dict() == before
