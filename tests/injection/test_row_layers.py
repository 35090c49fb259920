"""Each row of a batch drops its own layers: ``granularity="row"``."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from transformers import DynamicCache

from conftest import CACHE, DEPTH, assert_same_tensors, batch_for, build, layers_of, loss_of
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    remove_layerdrop,
    set_rates,
    set_step,
    sub_network,
)
from hf_layerdrop.errors import LayerDropStateError
from row_models import FAMILIES, cut_to, family, gradients_of, layers_of_row, loss_of_row, output_of

ROWS = 5
BERT, BART, BART_DECODER = "BertForSequenceClassification", "BartForConditionalGeneration", "BartForCausalLM"


def by_row(model, rate=0.5, seed=1, **settings):
    inject_layerdrop(model, LayerDropConfig(rate, seed=seed, granularity="row", **settings))
    return model.train()


def wide_batch(head=BERT, rows=6):
    """Return the batch of a head twice over, in which no row has its own twin beside it."""
    batches = [batch_for(head, seed) for seed in range(2)]
    return {name: torch.cat([batch[name] for batch in batches])[:rows] for name in batches[0]}


def rows_that_run(model, batch):
    """Return how many rows each layer ran on in a training forward, seen by the attention inside of it."""
    seen = {name: [None] * len(layers) for name, layers in layers_of(model).items()}

    def recorder(name, index):
        def record(module, args, kwargs):
            seen[name][index] = len(args[0] if args else kwargs["hidden_states"])

        return record

    hooks = [
        next(layer.children()).register_forward_pre_hook(recorder(name, index), with_kwargs=True)
        for name, layers in layers_of(model).items()
        for index, layer in enumerate(layers)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


# --- what a row gets ----------------------------------------------------------------------------------------------


TOKENS, HEADS = 7, 4  # of the tiny models: a batch may have as many rows
OTHERS = ("bloom", "mpt", "wavlm")  # whose biases of heads are for all rows, or for each


@pytest.mark.parametrize(
    ("model_type", "rows"),
    [*product((*FAMILIES, *OTHERS), (ROWS, TOKENS)), *product(OTHERS, [HEADS])],
)
def test_each_row_gets_the_output_and_the_gradient_of_the_model_cut_to_its_layers(model_type, rows):
    model, batch = family(model_type, rows)
    whole = output_of(model, batch)
    by_row(model)
    kept = [layers_of_row(model, row, rows) for row in range(rows)]
    outputs = []
    for row in range(rows):
        set_step(model, 0)
        outputs.append(output_of(model, batch))
        if not all(kept[row].values()):  # it drops a whole stack, to which no model can be cut
            continue
        cut, names = cut_to(model, kept[row])
        expected = output_of(cut, batch)
        assert torch.allclose(outputs[row][row], expected[row], rtol=1e-9, atol=1e-9)
        found = gradients_of(model, loss_of_row(outputs[row], row))
        for name, gradient in gradients_of(cut, loss_of_row(expected, row)).items():
            assert torch.allclose(found.pop(names[name]), gradient, rtol=1e-8, atol=1e-9), name
        assert not any(gradient.any() for gradient in found.values()), "a layer that it drops got a gradient of the row"
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    assert len({str(layers) for layers in kept}) > 1
    assert not torch.allclose(outputs[0], whole)


def test_rates_of_zero_and_one_equal_the_cut_model_bit_for_bit(head):
    model = by_row(build(head), (0, 1, 0, 1))
    cut = copy.deepcopy(model)
    remove_layerdrop(cut)
    prune_layers(cut, {name: [0, 2] for name in layers_of(cut)})
    loss, expected = (loss_of(each.train(), batch_for(head)) for each in (model, cut))
    assert torch.equal(loss, expected)
    loss.backward()
    for layers in layers_of(model).values():
        nones = [all(weight.grad is None for weight in layer.parameters()) for layer in layers]
        assert nones == [False, True, False, True]


def test_a_layer_computes_exactly_its_share_of_the_rows(head):
    rates = (0.0, 0.2, 0.5, 0.9)
    model = by_row(build(head), rates)
    for step in range(3):
        set_step(model, step)
        assert all(seen == [6, 5, 3, 1] for seen in rows_that_run(model, wide_batch(head)).values())
    for draw in layerdrop_state(model).draws.values():
        assert draw.layers_run / draw.forwards == pytest.approx((6 + 5 + 3 + 1) / 6)
        assert draw.layer_forwards == pytest.approx(draw.layers_run)


def test_eval_and_rate_0_are_bit_equal_to_the_untouched_model(head):
    untouched, batch = build(head), batch_for(head)
    model = by_row(build(head), 0.9)
    assert torch.equal(loss_of(model.eval(), batch), loss_of(untouched.eval(), batch))
    set_rates(model, 0.0)
    assert torch.equal(loss_of(model.train(), batch), loss_of(untouched.train(), batch))


def test_remove_undoes_it_and_copies_go_on_as_the_model_does(head):
    model, batch = by_row(build(head)), batch_for(head)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    expected = loss_of(model, batch)
    assert all(torch.equal(loss_of(one, batch), expected) for one in copies)
    remove_layerdrop(model)
    assert not any("_layerdrop" in name for part in model.modules() for name in vars(part))
    assert torch.equal(loss_of(model, batch), loss_of(build(head).train(), batch))
    assert {type(part) for part in model.modules()} == {type(part) for part in build(head).modules()}


def test_batches_and_rows_replace_each_other():
    model, batch = build(BERT), batch_for(BERT)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    expected = loss_of(model.train(), batch)
    by_row(model)
    assert not torch.equal(loss_of(model, batch), expected)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    assert torch.equal(loss_of(model, batch), expected)


def test_a_block_of_a_sub_network_drops_nothing_and_a_cut_goes_on_without_dropping():
    model, batch = by_row(build(BERT)), batch_for(BERT)
    plain = build(BERT).train()
    prune_layers(plain, [0, 2])
    with sub_network(model, [0, 2]):
        assert torch.equal(loss_of(model, batch), loss_of(plain, batch))
    prune_layers(model, [0, 2])
    assert torch.equal(loss_of(model, batch), loss_of(plain, batch))


def test_training_where_all_that_is_trained_is_dropped_runs_one_layer_on_all_rows():
    model = by_row(build(BERT), (0.5, 0.5, 0.5, 1.0))
    for name, weight in model.named_parameters():
        weight.requires_grad = "layer.3." in name
    assert rows_that_run(model, batch_for(BERT)) == {"encoder": [2, 2, 2, 3]}
    loss_of(model, batch_for(BERT)).backward()


# --- caches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bart", "t5"])
def test_a_cache_that_a_training_forward_would_fill_changes_nothing(model_type):
    model, batch = family(model_type)
    by_row(model)
    with_cache, without = (
        (set_step(model, 0), output_of(model, {**batch, "use_cache": use_cache}))[1] for use_cache in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_a_cache_is_filled_by_layers_that_run_on_all_rows_alone():
    model, batch = family("llama")
    by_row(model, (0.0, 0.5, 0.5, 1.0))
    cache = model(**batch, use_cache=True)[CACHE]
    assert [cache.get_seq_length(layer) for layer in range(DEPTH)] == [batch["input_ids"].shape[1], 0, 0, 0]


def test_a_forward_that_continues_a_cache_and_generation_drop_nothing():
    model, batch = by_row(build(BART_DECODER), 0.9), batch_for(BART_DECODER)
    plain = build(BART_DECODER).train()

    def continued(each):
        cache = DynamicCache(config=each.config)
        with torch.no_grad():
            each.eval()(batch["input_ids"][:, :4], **{CACHE: cache})
        return each.train()(batch["input_ids"][:, 4:], **{CACHE: cache}).logits

    assert torch.equal(continued(model), continued(plain))
    ids = batch["input_ids"][:, :4]
    tokens = [each.generate(ids, max_new_tokens=4, do_sample=False) for each in (model, plain)]
    assert torch.equal(*tokens)


# --- what is recorded, and said -----------------------------------------------------------------------------------


def test_hidden_states_of_a_row_repeat_where_it_drops_a_layer_and_attentions_of_some_rows_are_none(head):
    model, batch = by_row(build(head), (0.0, 0.5, 0.5, 1.0)), batch_for(head)
    masks = {name: draw.draw().kept(3) for name, draw in layerdrop_state(model).draws.items()}
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    for name, kept in masks.items():
        prefix = f"{name}_" if f"{name}_hidden_states" in outputs else ""
        states = outputs[f"{prefix}hidden_states"]
        assert len(states) == DEPTH + 1
        for layer, rows in enumerate(kept):
            same = [torch.equal(states[layer][row], states[layer + 1][row]) for row in range(3)]
            assert same == [row not in rows for row in range(3)]
        attentions = outputs[f"{prefix}attentions"]
        assert [weights is None for weights in attentions] == [False, True, True, True]


def test_a_batch_too_small_to_leave_a_row_out_is_told_once(caplog):
    model, batch = by_row(build(BERT), 0.1), batch_for(BERT)
    for _ in range(3):
        model(**batch)
    assert caplog.text.count("of 3 rows a batch") == 1
    by_row(model, 0.5)(**batch)
    assert caplog.text.count("rows a batch") == 1


def test_a_model_says_its_log_in_layers_that_a_row_runs():
    model = by_row(build(BERT), 0.5)
    model(**wide_batch())
    assert layerdrop_state(model).take_log() == {"layerdrop_rate": 0.5, "layerdrop_layers_used": 2.0}


def test_the_counter_is_saved_and_a_run_of_another_granularity_is_refused():
    model, batch = by_row(build(BERT)), wide_batch()
    for _ in range(3):
        model(**batch)
    saved = layerdrop_state(model).state_dict()
    resumed = by_row(build(BERT))
    layerdrop_state(resumed).load_state_dict(saved)
    assert torch.equal(loss_of(resumed, batch), loss_of(model, batch))
    by_batch = build(BERT)
    inject_layerdrop(by_batch, LayerDropConfig(0.5, seed=1))
    with pytest.raises(LayerDropStateError, match="bernoulli by row"):
        layerdrop_state(by_batch).load_state_dict(saved)


def test_no_global_generator_is_advanced():
    model, batch = by_row(build(BERT)), batch_for(BERT)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loss_of(model, batch).backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("head", [BERT, BART])
def test_autocast_keeps_the_precision_of_a_step_at_rate_0(head):
    model, batch = by_row(build(head)), wide_batch(head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, batch)
        loss.backward()
        set_step(model, 0)
    other = loss_of(model, batch)
    assert torch.isfinite(loss)
    assert torch.allclose(loss.float(), other, rtol=0.1, atol=1.0)
    gradients = [weight.grad for layers in layers_of(model).values() for one in layers for weight in one.parameters()]
    assert all(gradient is not None for gradient in gradients)


def test_layers_of_other_rates_share_one_counter_with_the_other_stack():
    model, batch = by_row(build(BART), {"encoder": 0.5}), wide_batch(BART)
    seen = rows_that_run(model, batch)
    assert seen == {"encoder": [3] * DEPTH, "decoder": [6] * DEPTH}
    assert_same_tensors(dict(model.named_parameters()), dict(build(BART).named_parameters()))


def test_adapters_are_trained_on_the_rows_that_run():
    peft = pytest.importorskip("peft")
    model, batch = by_row(build(BERT)), wide_batch()
    expected = loss_of(model, batch)
    remove_layerdrop(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"]))
    by_row(adapted)
    loss = loss_of(adapted, batch)
    assert torch.allclose(loss, expected)  # new adapters add nothing
    loss.backward()
    trained = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert len(trained) == 2 * DEPTH
    assert all(weight.grad.any() for weight in trained)
