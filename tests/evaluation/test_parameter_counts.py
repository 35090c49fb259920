"""The parameters of a sub-network are those of the model that is cut to it, tied weights and moved ones included."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, T5Config, T5ForConditionalGeneration

from conftest import build
from hf_layerdrop import prune_layers
from hf_layerdrop.evaluation.parameter_counts import parameters_of
from hf_layerdrop.pruning.prune import Cutter, count_parameters


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_decoder_layers=4, num_heads=2)
    )


def gpt2():
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=30, n_embd=16, n_layer=4, n_head=2, n_positions=20))


def with_tied_layers():
    model = build("BertForMaskedLM")
    layers = model.bert.encoder.layer
    layers[2].output.dense.weight = layers[1].output.dense.weight  # as no family has it by itself
    layers[3].output.LayerNorm.weight = model.bert.embeddings.LayerNorm.weight
    layers[0].intermediate.dense.weight = torch.nn.Parameter(torch.zeros(32, 16), requires_grad=False)
    return model


MODELS = {
    "bert": lambda: build("BertForSequenceClassification"),
    "bart": lambda: build("BartForConditionalGeneration"),
    "t5": t5,
    "gpt2": gpt2,
    "tied": with_tied_layers,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (0, 2), (1, 3), (2, 3), (3,)])
def test_a_sub_network_counts_as_the_model_that_is_cut_to_it(make, layers):
    model = make()
    cutter = Cutter(model)
    kept = {name: layers if name != "encoder" or len(cutter.depths) == 1 else (1, 2) for name in cutter.depths}
    found = parameters_of(cutter, model, kept)
    whole = parameters_of(cutter, model, {name: range(depth) for name, depth in cutter.depths.items()})
    assert whole == count_parameters(model)
    assert found == count_parameters(prune_layers(model, {name: list(numbers) for name, numbers in kept.items()}))
    assert (found < whole) == (found != whole)
