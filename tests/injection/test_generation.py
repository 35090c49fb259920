"""Generation drops nothing: promise 8 of the design."""

import copy
import inspect

import pytest
import torch
from transformers import DynamicCache

from conftest import (
    CACHE,
    DEPTH,
    batch_for,
    build,
    drawn,
    injected,
    recorded_runs,
)
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    set_rates,
)

GENERATING = ["BertLMHeadModel", "RobertaForCausalLM", "BartForConditionalGeneration", "BartForCausalLM"]


def prompts(left_padded=True):
    ids = batch_for("BertLMHeadModel")["input_ids"].clamp(min=5)
    mask = torch.ones_like(ids)
    if left_padded:
        ids[0, :3], mask[0, :3] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", GENERATING)
def test_generate_in_train_mode_drops_nothing_and_draws_nothing(name, sampled):
    model = build(name)
    settings = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": sampled, "num_beams": 1}
    torch.manual_seed(0)
    expected = model.generate(**prompts(), **settings)
    inject_layerdrop(model, LayerDropConfig(0.7, seed=1))
    twin_masks = drawn(injected(name, 0.7, seed=1), prompts(), 2)
    assert drawn(model, prompts()) == twin_masks[:1]
    torch.manual_seed(0)
    with recorded_runs(model) as runs:
        assert torch.equal(model.train().generate(**prompts(), **settings), expected)
    assert all(set(layers) == {0, 1, 2, 3} for layers in runs.values())
    assert drawn(model, prompts()) == twin_masks[1:]


@pytest.mark.parametrize("name", GENERATING)
def test_generate_with_gradients_drops_nothing_either(name):
    model = injected(name, 0.7, seed=1).train()
    with recorded_runs(model) as runs:
        inspect.unwrap(type(model).generate)(model, **prompts(), max_new_tokens=3, do_sample=False, num_beams=1)
    assert all(len({layers.count(layer) for layer in range(DEPTH)}) == 1 for layers in runs.values())
    assert drawn(model, prompts()) == drawn(injected(name, 0.7, seed=1), prompts())


@pytest.mark.parametrize("name", GENERATING)
def test_a_forward_that_continues_a_cache_drops_nothing(name):
    model, batch = build(name), prompts()
    more = torch.tensor([[7], [8], [9]])
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    inputs = {"decoder_input_ids": batch["input_ids"]} if name == "BartForConditionalGeneration" else {}
    with torch.no_grad():
        past = model(**batch, **inputs, use_cache=True)
    if inputs:
        follow = {
            "encoder_outputs": (past.encoder_last_hidden_state,),
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": more,
        }
    else:
        follow = {"input_ids": more, "attention_mask": mask}
    expected = model(**follow, **{CACHE: copy.deepcopy(past[CACHE])}).logits
    inject_layerdrop(model, 0.99)
    before = layerdrop_state(model).draws["decoder" if name.startswith("Bart") else "encoder"].forward
    output = model.train()(**follow, **{CACHE: copy.deepcopy(past[CACHE])}).logits
    assert torch.equal(output, expected)
    assert layerdrop_state(model).draws["decoder" if name.startswith("Bart") else "encoder"].forward == before
    set_rates(model, (1, 0, 0, 0))  # a training forward whose first layer was dropped leaves that layer's cache empty
    with torch.no_grad():
        begun = model(**batch, **inputs, use_cache=True).get(CACHE)
    if begun is not None:
        set_rates(model, (0, 1, 1, 1))
        with recorded_runs(model) as runs:
            model(**follow, **{CACHE: begun})
        assert runs["decoder" if name.startswith("Bart") else "encoder"] == [0, 1, 2, 3]
    set_rates(model, 0.99)
    if not inputs:  # an empty cache is the beginning of a sequence, and drops as any training forward
        assert not torch.allclose(model(**batch, **{CACHE: DynamicCache()}).logits, past.logits, atol=1e-3)


def test_an_encoder_drops_nothing_beside_a_decoder_that_continues_a_cache():
    model, batch = injected("BartForConditionalGeneration", 0.9, seed=1), prompts()
    inputs = {"decoder_input_ids": batch["input_ids"]}
    with torch.no_grad():
        filled = model.eval()(**batch, **inputs, use_cache=True).get(CACHE)
    with recorded_runs(model.train()) as runs:  # no encoder_outputs: the encoder runs again
        model(**batch, decoder_input_ids=torch.tensor([[7], [8], [9]]), **{CACHE: filled})
    assert runs == {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3]}
    (runs,) = drawn(model, {**batch, **inputs})
    assert len(runs["encoder"]) < DEPTH
