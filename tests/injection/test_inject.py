"""Inject, train, remove: promises 1 to 6 and 8 of the design."""

import copy
import inspect
import io
import json
import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, DynamicCache, TrainingArguments

from conftest import (
    CACHE,
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    cut_by_hand,
    drawn,
    gradients_of,
    keep_all_stacks,
    layers_of,
    loss_of,
    output_of,
    recorded_runs,
)
from hf_layerdrop import (
    LayerDropConfig,
    evaluate_depths,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    remove_layerdrop,
    set_rates,
    set_step,
    sub_network,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError, UnsupportedModelError
from hf_layerdrop.injection.inject import scale_rates

CUT = (0, 1, 0, 1)
GENERATING = ["BertLMHeadModel", "RobertaForCausalLM", "BartForConditionalGeneration", "BartForCausalLM"]


def traces(model):
    """Return all of a model that inject could change, other than the weights."""
    plain = (str, int, float, bool, type(None))

    def shown(value):
        return value if isinstance(value, plain) else len(value) if isinstance(value, dict) else "an object"

    modules = {
        name: (type(module), {key: shown(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }
    return modules, model.config.to_dict(), vars(model.config).keys()


# --- Promise 1: nothing of the model changes, and remove undoes it --------------------------------


def test_inject_changes_no_name_shape_dtype_or_value_of_a_weight(any_head):
    model = build(any_head).to(torch.bfloat16)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    class_names = [
        (name, type(m).__name__, type(m).__qualname__, type(m).__module__) for name, m in model.named_modules()
    ]
    inject_layerdrop(model, 1.0)
    assert_same_tensors(model.state_dict(), weights)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert [
        (name, type(m).__name__, type(m).__qualname__, type(m).__module__) for name, m in model.named_modules()
    ] == class_names
    assert all(not runs for runs in drawn(model, batch_for(any_head))[0].values())
    assert_same_tensors(model.state_dict(), weights)


ROUTES = {
    "as it is": lambda model, folder: model,
    "saved": lambda model, folder: model.save_pretrained(folder) or model,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "trained": lambda model, folder: drawn(model, batch_for(type(model).__name__)) and model.eval(),
}


@pytest.mark.parametrize("route", ROUTES)
def test_remove_undoes_inject_exactly(head, route, tmp_path):
    native = {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.2} if head.startswith("Bart") else {}
    untouched = ROUTES[route](build(head, **native), tmp_path / "untouched")
    model = build(head, **native)
    inject_layerdrop(model, LayerDropConfig(0.9, seed=3))
    assert traces(model) != traces(build(head, **native))
    model = ROUTES[route](model, tmp_path / "injected")
    assert layerdrop_state(model).rates == {name: [0.9] * DEPTH for name in layers_of(model)}
    remove_layerdrop(model)
    assert traces(model) == traces(untouched)
    assert_same_tensors(model.state_dict(), untouched.state_dict())
    with pytest.raises(LayerDropStateError):
        layerdrop_state(model)
    if not native:
        assert torch.equal(output_of(model.train(), batch_for(head)), output_of(untouched.train(), batch_for(head)))


def test_copies_go_on_alone(head):
    model, batch = build(head), batch_for(head)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=3))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
    expected = drawn(model, batch, 6)
    set_rates(model, 1.0)
    assert all(drawn(copied, batch, 6) == expected for copied in copies)
    assert drawn(model, batch) != expected[:1]


def test_two_models_built_from_one_config_object_each_keep_and_save_their_own_rates(head, tmp_path):
    first = build(head)
    second = type(first)._from_config(first.config, attn_implementation="eager")
    assert second.config is first.config
    inject_layerdrop(first, LayerDropConfig(0.1, seed=1))
    inject_layerdrop(second, LayerDropConfig(0.5, seed=2))
    set_rates(first, 0.2)
    for model, rate, seed in ((first, 0.2, 1), (second, 0.5, 2)):
        model.save_pretrained(tmp_path / str(seed))
        saved = json.loads((tmp_path / str(seed) / "config.json").read_text())["hf_layerdrop"]
        assert all(value == rate for rates in saved["rates"].values() for value in rates)
        assert saved["seed"] == seed
    configs = {id(module.config) for module in second.modules() if hasattr(module, "config")}
    assert len(configs) == len({id(module.config) for module in build(head).modules() if hasattr(module, "config")})
    remove_layerdrop(second)
    assert hasattr(first.config, "hf_layerdrop")
    assert not hasattr(second.config, "hf_layerdrop")


def test_a_second_inject_replaces_the_first(head):
    model, once, batch = build(head), build(head), batch_for(head)
    inject_layerdrop(once, LayerDropConfig(0.5, seed=2))
    inject_layerdrop(model, LayerDropConfig(1.0, seed=1))
    inject_layerdrop(model, LayerDropConfig(0.5, seed=2))
    assert model.config.to_dict() == once.config.to_dict()
    assert drawn(model, batch, 6) == drawn(once, batch, 6)
    remove_layerdrop(model)
    assert traces(model.eval()) == traces(build(head))
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        remove_layerdrop(model)


@pytest.mark.parametrize("before", [None, 0.25])
def test_an_inject_that_is_refused_changes_nothing(head, before):
    model = build(head)
    if before is not None:
        inject_layerdrop(model, before)
    expected = traces(model)
    for bad in (1.5, (0.1, 0.2), {"middle": 0.5}, LayerDropConfig(0.1, never_drop=(9,))):
        with pytest.raises(LayerDropConfigError):
            inject_layerdrop(model, bad)
        assert traces(model) == expected


def test_what_has_no_stacks_is_refused():
    albert = AlbertModel(
        AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    )
    expected = traces(albert)
    with pytest.raises(UnsupportedModelError, match="ALBERT runs one shared layer"):
        inject_layerdrop(albert, 0.2)
    assert traces(albert) == expected
    with pytest.raises(UnsupportedModelError, match="Linear"):
        inject_layerdrop(torch.nn.Linear(2, 2), 0.2)
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        set_rates(build("BertModel"), 0.2)
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        set_step(build("BertModel"), 3)


# --- Promise 2: rate 0 and eval are the untouched model -------------------------------------------


def test_rate_0_and_eval_are_bit_equal_to_the_untouched_model(any_head):
    model, untouched, batch = build(any_head), build(any_head), batch_for(any_head)
    inject_layerdrop(model, 0.0)
    trained, expected = output_of(model.train(), batch), output_of(untouched.train(), batch)
    assert torch.equal(trained, expected)
    assert_same_tensors(gradients_of(model, loss_of(model, batch)), gradients_of(untouched, loss_of(untouched, batch)))
    set_rates(model, 0.999)
    assert torch.equal(output_of(model.eval(), batch), output_of(untouched.eval(), batch))
    with torch.no_grad():
        assert torch.equal(output_of(model, batch), output_of(untouched, batch))
    assert not torch.equal(output_of(model.train(), batch), expected)


# --- Promise 3: a dropped layer does no work ------------------------------------------------------


def test_rates_of_zero_and_one_equal_the_model_cut_by_hand(any_head):
    model, batch = build(any_head).train(), batch_for(any_head)
    cut = cut_by_hand(model, keep_all_stacks(model, [0, 2]))
    others = [cut_by_hand(model, keep_all_stacks(model, kept)) for kept in ([1, 3], [0, 1], [0, 3], [0, 1, 2, 3])]
    inject_layerdrop(model, CUT)
    output = output_of(model, batch)
    assert torch.equal(output, output_of(cut, batch))
    for other in others:
        assert not torch.allclose(output, output_of(other, batch), atol=1e-3)
    renamed = renumbered(gradients_of(model, loss_of(model, batch)), {0: 0, 2: 1})
    assert_same_tensors(renamed, gradients_of(cut, loss_of(cut, batch)))


def renumbered(gradients, numbers):
    """Name the layers' gradients as those of the cut model."""
    renamed = {}
    for name, gradient in gradients.items():
        parts = name.split(".")
        place = next(
            (index for index, part in enumerate(parts) if part.isdigit() and parts[index - 1].startswith("layer")), None
        )
        if place is not None:
            if int(parts[place]) not in numbers:
                assert gradient is None, name
                continue
            parts[place] = str(numbers[int(parts[place])])
        renamed[".".join(parts)] = gradient
    return renamed


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("bart", ["BartModel", "BartForConditionalGeneration"])
def test_rates_by_stack_drop_in_that_stack_alone(bart, stack):
    model, batch = build(bart).train(), batch_for(bart)
    kept = {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], stack: [1, 2]}
    cut, full = cut_by_hand(model, kept), build(bart)
    inject_layerdrop(model, {stack: (1, 0, 0, 1)})
    assert drawn(model, batch) == [kept]
    assert torch.equal(output_of(model, batch), output_of(cut, batch))
    assert not torch.allclose(output_of(full, batch), output_of(cut, batch), atol=1e-3)
    inject_layerdrop(model, {"encoder": 0.25, "decoder": (0, 0.5, 0, 1)})
    assert layerdrop_state(model).rates == {"encoder": [0.25] * 4, "decoder": [0, 0.5, 0, 1]}


def test_a_dropped_layer_is_never_entered_not_even_its_hooks(any_head):
    model, batch = build(any_head), batch_for(any_head)
    inject_layerdrop(model, CUT)
    entered = []
    for stack, layers in layers_of(model).items():
        for index, layer in enumerate(layers):
            for part in layer.modules():
                part.register_forward_pre_hook(lambda *_, place=(stack, index): entered.append(place))
                part.register_forward_hook(lambda *_, place=(stack, index): entered.append(place))
    output_of(model.train(), batch).sum().backward()
    assert {index for _, index in entered} == {0, 2}
    assert {stack for stack, _ in entered} == set(layers_of(model))
    output_of(model.eval(), batch)
    assert {index for _, index in entered} == {0, 1, 2, 3}


def test_adamw_leaves_dropped_layers_untouched_although_it_has_momentum_for_them(head):
    model, batch = build(head).train(), batch_for(head)
    inject_layerdrop(model, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    set_rates(model, CUT)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # two micro-steps of one step, which both drop the layer
        loss_of(model, batch).backward()
    optimizer.step()
    for layers in layers_of(model).values():
        dropped = {id(parameter) for layer in (layers[1], layers[3]) for parameter in layer.parameters()}
        ran = {id(parameter) for layer in (layers[0], layers[2]) for parameter in layer.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) in dropped:
                assert parameter.grad is None, name
                assert torch.equal(parameter, before[name]), name
            if (
                id(parameter) in ran and parameter in optimizer.state
            ):  # BART's decoder alone has cross attentions unused
                assert not torch.equal(parameter, before[name]), name


# --- Promise 4: per-layer outputs keep their length -----------------------------------------------


def per_layer_outputs(outputs):
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    hidden = {name: outputs[name] for name in names if name in outputs}
    names = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return hidden, {name: outputs[name] for name in names if name in outputs and outputs[name] is not None}


def lengths(outputs):
    return {name: len(entries) for name, entries in outputs.items()}


@pytest.mark.parametrize("rates", [CUT, (1, 0, 1, 0), (1, 1, 1, 1)])
def test_hidden_states_repeat_the_input_of_a_dropped_layer_and_its_attentions_are_none(any_head, rates):
    model, batch = build(any_head).train(), batch_for(any_head)
    flags = {"output_hidden_states": True, "output_attentions": True, "return_dict": True}
    kept = [layer for layer in range(DEPTH) if not rates[layer]]
    full_hidden, full_attentions = per_layer_outputs(model(**batch, **flags))
    cut = cut_by_hand(model, keep_all_stacks(model, kept)) if kept else None
    cut_hidden, cut_attentions = per_layer_outputs(cut(**batch, **flags)) if cut else (None, None)
    inject_layerdrop(model, rates)
    hidden, attentions = per_layer_outputs(model(**batch, **flags))
    assert lengths(hidden) == lengths(full_hidden)
    assert lengths(attentions) == lengths(full_attentions)
    assert set(lengths(hidden).values()) == {DEPTH + 1}
    assert DEPTH in lengths(attentions).values()
    for name, states in hidden.items():
        repeats = [torch.equal(*pair) for pair in pairwise(states)]
        assert repeats == [rate == 1 for rate in rates], name
        if cut:
            distinct = [states[0], *(states[layer + 1] for layer in kept)]
            assert all(torch.equal(*pair) for pair in zip(distinct, cut_hidden[name], strict=True)), name
    for name, weights in attentions.items():
        if not weights:  # a decoder without encoder states has no cross attentions to record
            continue
        assert [weight is None for weight in weights] == [rate == 1 for rate in rates], name
        if cut:
            ran = [weight for weight in weights if weight is not None]
            assert all(torch.equal(*pair) for pair in zip(ran, cut_attentions[name], strict=True)), name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("structure", ["layer", "attention", "head"])
def test_as_many_attentions_are_returned_as_at_rate_0(any_head, implementation, structure):
    """Of the default attention, which returns no weights, transformers records none: then nor may a dropped layer."""
    model, batch = build(any_head).train(), batch_for(any_head)
    model.set_attn_implementation(implementation)
    flags = {"output_attentions": True, "return_dict": True}
    expected = lengths(per_layer_outputs(model(**batch, **flags))[1])
    assert any(expected.values()) == (implementation == "eager")
    inject_layerdrop(model, LayerDropConfig(0.5, structure=structure, seed=3))
    for step in range(3):
        set_step(model, step)
        assert lengths(per_layer_outputs(model(**batch, **flags))[1]) == expected


# --- Promise 5: BART's own LayerDrop is taken over ------------------------------------------------


@pytest.mark.parametrize(
    "bart", ["BartModel", "BartForConditionalGeneration", "BartForSequenceClassification", "BartForCausalLM"]
)
def test_native_layerdrop_is_never_applied_on_top_of_ours(bart):
    model, batch = build(bart, encoder_layerdrop=1.0, decoder_layerdrop=1.0), batch_for(bart)
    expected = output_of(model.eval(), batch)
    assert not torch.allclose(output_of(model.train(), batch), expected, atol=1e-3)
    inject_layerdrop(model, 0.0)
    assert torch.equal(output_of(model.train(), batch), expected)
    written = [getattr(model.config, f"{stack}_layerdrop") for stack in layers_of(model)]
    assert written == [0.0] * len(written)
    remove_layerdrop(model)
    assert (model.config.encoder_layerdrop, model.config.decoder_layerdrop) == (1.0, 1.0)
    assert not torch.allclose(output_of(model.train(), batch), expected, atol=1e-3)


def natively_drawn(seed, rates):
    """Draw as BART's loops do: one number a layer from torch's global generator, the encoder first."""
    torch.manual_seed(seed)
    return {name: [int(torch.rand([]) < rate) for _ in range(DEPTH)] for name, rate in rates.items()}


def test_at_equal_draws_our_training_loss_and_gradients_equal_barts_own():
    rates = {"encoder": 0.5, "decoder": 0.4}
    native = build("BartForConditionalGeneration", encoder_layerdrop=0.5, decoder_layerdrop=0.4).train()
    ours = build("BartForConditionalGeneration", encoder_layerdrop=0.5, decoder_layerdrop=0.4).train()
    inject_layerdrop(ours, rates)
    batch = batch_for("BartForConditionalGeneration")
    batch["labels"] = batch["input_ids"].flip(1)
    losses = set()
    for seed in range(6):
        masks = natively_drawn(seed, rates)
        assert {0, 1} <= {rate for mask in masks.values() for rate in mask}
        set_rates(ours, masks)
        torch.manual_seed(seed)
        loss = native(**batch).loss
        expected = gradients_of(native, loss)
        ours_loss = ours(**batch).loss
        assert torch.equal(ours_loss, loss)
        assert_same_tensors(gradients_of(ours, ours_loss), expected)
        losses.add(loss.item())
    assert len(losses) == 6


# --- Promise 6: the mask is a pure function of the counter ----------------------------------------


def injected(head, rate=0.5, **settings):
    model = build(head)
    inject_layerdrop(model, LayerDropConfig(rate, **settings))
    return model


def test_equal_counters_draw_equal_masks_and_others_do_not(head):
    batch = batch_for(head)
    expected = drawn(injected(head, seed=1), batch, 8)
    assert drawn(injected(head, seed=1), batch, 8) == expected
    assert drawn(injected(head, seed=2), batch, 8) != expected
    assert len({json.dumps(mask) for mask in expected}) > 4  # forwards of one step differ, as R-Drop and SimCSE need
    model = injected(head, seed=1)
    set_step(model, 1)
    assert drawn(model, batch, 8) != expected
    set_step(model, 0, micro_step=1)
    assert drawn(model, batch, 8) != expected
    set_step(model, 0)
    assert drawn(model, batch, 8) == expected


def test_the_two_stacks_of_bart_draw_apart():
    masks = drawn(injected("BartModel"), batch_for("BartModel"), 8)
    assert [mask["encoder"] for mask in masks] != [mask["decoder"] for mask in masks]


def test_a_sequence_of_draws_has_the_rate_it_was_asked_for():
    model, batch = injected("BertModel", (0.1, 0.9, 0.5, 0.5), seed=4), batch_for("BertModel")
    runs = [layer for mask in drawn(model, batch, 300) for layer in mask["encoder"]]
    np.testing.assert_allclose([runs.count(layer) / 300 for layer in range(DEPTH)], (0.9, 0.1, 0.5, 0.5), atol=0.1)


def test_no_global_random_generator_is_read_or_advanced(head):
    model, batch = injected(head, seed=1), batch_for(head)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = drawn(model, batch, 4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), states[2], strict=True))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    set_step(model, 0)
    assert drawn(model, batch, 4) == expected


def test_forwards_without_gradient_and_evaluations_do_not_advance_the_count(head):
    batch = batch_for(head)
    expected = drawn(injected(head), batch, 4)
    model = injected(head)
    for mask in expected:
        with torch.no_grad():
            model.train()(**batch)
            model(**batch)
        model.eval()(**batch)
        assert drawn(model, batch) == [mask]


OTHER_RANK = """
import json, sys
import numpy, random, torch
torch.manual_seed(1); random.seed(1); numpy.random.seed(1)
sys.path.insert(0, sys.argv[1])
from conftest import batch_for, build, drawn
from hf_layerdrop import LayerDropConfig, inject_layerdrop
model = build("BartModel")
inject_layerdrop(model, LayerDropConfig(0.5, seed=11))
print(json.dumps(drawn(model, batch_for("BartModel", seed=1), 8)))
"""


def test_every_rank_draws_the_same():
    command = [sys.executable, "-c", OTHER_RANK, str(Path(__file__).parents[1])]
    environment = {**os.environ, "RANK": "1", "PYTHONHASHSEED": "2"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == drawn(injected("BartModel", seed=11), batch_for("BartModel"), 8)


def test_a_saved_state_continues_the_draws_in_another_process_and_model(head):
    batch = batch_for(head)
    model = injected(head, seed=9)
    set_step(model, 5, micro_step=1)
    set_rates(model, 0.4)
    drawn(model, batch, 3)
    saved = json.loads(json.dumps(layerdrop_state(model).state_dict()))
    expected = drawn(model, batch, 6)
    resumed = injected(head, seed=1)
    assert drawn(resumed, batch, 6) != expected
    layerdrop_state(resumed).load_state_dict(saved)
    assert drawn(resumed, batch, 6) == expected
    assert layerdrop_state(resumed).state_dict() == layerdrop_state(model).state_dict()


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    saved = layerdrop_state(injected("BartModel")).state_dict()
    model = injected("BertModel", seed=3)
    before = layerdrop_state(model).state_dict()
    with pytest.raises(LayerDropConfigError, match="decoder"):
        layerdrop_state(model).load_state_dict(saved)
    assert layerdrop_state(model).state_dict() == before


@pytest.mark.parametrize("missing", ["seed", "rates", "counters"])
def test_a_state_that_lacks_an_entry_is_refused(missing):
    model = injected("BertModel", seed=3)
    before = layerdrop_state(model).state_dict()
    with pytest.raises(LayerDropConfigError, match=f"'{missing}'"):
        layerdrop_state(model).load_state_dict({name: value for name, value in before.items() if name != missing})
    assert layerdrop_state(model).state_dict() == before


@pytest.mark.parametrize(("step", "micro_step"), [(-1, 0), (1.5, 0), (True, 0), ("3", 0), (0, -1), (0, None)])
def test_a_step_that_is_no_step_is_refused(step, micro_step):
    with pytest.raises(LayerDropConfigError, match="whole number, 0 or more"):
        set_step(injected("BertModel"), step, micro_step)


# --- Rates while training -------------------------------------------------------------------------


def test_set_rates_changes_the_next_forward_and_is_written_down(head):
    model, batch = injected(head), batch_for(head)
    set_rates(model, CUT)
    assert drawn(model, batch) == [keep_all_stacks(model, [0, 2])]
    assert model.config.hf_layerdrop["rates"] == {name: list(CUT) for name in layers_of(model)}
    assert model.config.hf_layerdrop["trained_with"]["rate"] == 0.5
    set_rates(model, 0)
    assert drawn(model, batch) == [keep_all_stacks(model, [0, 1, 2, 3])]
    before = layerdrop_state(model).state_dict()
    for bad in (1.5, (0.5, 0.5), {"middle": 0.1}, float("nan")):
        with pytest.raises(LayerDropConfigError):
            set_rates(model, bad)
    assert layerdrop_state(model).state_dict() == before


def test_rates_that_change_between_two_micro_steps_hold_from_the_second_one_on(head):
    model, batches = injected(head, 0.0), [batch_for(head, seed) for seed in range(2)]
    expected = []
    for rates, batch in zip((0.0, (0, 1, 0, 1)), batches, strict=True):
        set_rates(model, rates)
        expected.append(gradients_of(model.train(), loss_of(model, batch)))
    set_rates(model, 0.0)
    model.zero_grad(set_to_none=True)
    for micro_step, batch in enumerate(batches):
        set_step(model, 0, micro_step)
        loss_of(model, batch).backward()
        set_rates(model, (0, 1, 0, 1))
    for name, weight in model.named_parameters():
        parts = [gradients[name] for gradients in expected if gradients[name] is not None]
        assert (weight.grad is None) == (not parts)
        assert not parts or torch.allclose(weight.grad, sum(parts), atol=1e-5)


def test_set_rates_keeps_the_shape_the_protected_layers_and_the_stacks_it_does_not_name():
    model = build("BartModel")
    inject_layerdrop(model, LayerDropConfig(0.3, shape="linear", never_drop=(-1,)))
    set_rates(model, 0.6)
    assert layerdrop_state(model).rates["encoder"] == pytest.approx([0, 0.2, 0.4, 0])
    set_rates(model, {"encoder": (0.5, 0.5, 0.5, 0.5)})
    assert layerdrop_state(model).rates["encoder"] == [0.5, 0.5, 0.5, 0]
    assert layerdrop_state(model).rates["decoder"] == pytest.approx([0, 0.2, 0.4, 0])


def test_scale_rates_multiplies_the_configured_rates():
    model = injected("BartModel", {"encoder": 0.4, "decoder": (0, 0.2, 0.4, 1)})
    scale_rates(model, 0.5)
    assert layerdrop_state(model).rates == {"encoder": [0.2] * 4, "decoder": [0, 0.1, 0.2, 0.5]}
    scale_rates(model, 1)
    assert layerdrop_state(model).rates == {"encoder": [0.4] * 4, "decoder": [0, 0.2, 0.4, 1]}
    for factor in (1.5, -0.1, float("nan")):
        with pytest.raises(LayerDropConfigError, match="from 0 to 1"):
            scale_rates(model, factor)


def test_the_depth_sampler_runs_evenly_spread_sets_alone(head):
    masks = drawn(injected(head, 0.4, sampler="depth"), batch_for(head), 40)
    found = {tuple(runs) for mask in masks for runs in mask.values()}
    assert found == {(3,), (0, 3), (0, 1, 3), (0, 1, 2, 3)}


def test_protected_layers_always_run(head):
    masks = drawn(injected(head, 1.0, never_drop=(1,)), batch_for(head), 2)
    assert {tuple(runs) for mask in masks for runs in mask.values()} == {(1,)}


# --- Promise 8: generation drops nothing ----------------------------------------------------------


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


# --- Trainer --------------------------------------------------------------------------------------


PLAIN_CALLBACKS = [cls for cls in transformers.trainer.DEFAULT_CALLBACKS if "layerdrop" not in cls.__module__]


def trainer_for(model, folder, **changes):
    generator = torch.Generator().manual_seed(3)
    data = [{"input_ids": torch.randint(5, 60, (7,), generator=generator), "labels": row % 2} for row in range(24)]
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "seed": 5,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 2,
        **changes,
    }
    return transformers.Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data)


def trained(folder, *, rate=0.5, resume=None, **changes):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, rate)
    trainer = trainer_for(model, folder, **changes)
    with recorded_runs(model) as runs:
        trainer.train(resume_from_checkpoint=resume)
    return model, runs["encoder"], trainer.state.log_history


def test_a_resumed_trainer_run_draws_what_the_uninterrupted_one_drew(tmp_path):
    whole, runs, logs = trained(tmp_path / "whole")
    resumed, later_runs, _ = trained(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert runs[-len(later_runs) :] == later_runs
    assert_same_tensors(dict(resumed.named_parameters()), dict(whole.named_parameters()))
    other, other_runs, _ = trained(tmp_path / "other", seed=6, data_seed=5)
    assert other_runs != runs
    assert whole.config.hf_layerdrop["seed"] == 5
    assert other.config.hf_layerdrop["seed"] == 6
    assert {entry["layerdrop_rate"] for entry in logs if "layerdrop_rate" in entry} == {0.5}
    used = [entry["layerdrop_layers_used"] for entry in logs if "layerdrop_layers_used" in entry]
    assert np.mean(used) == pytest.approx(len(runs) / 12)


def test_trainer_counts_steps_and_micro_steps_and_keeps_a_seed_that_was_given(tmp_path):
    _, runs, _ = trained(tmp_path, rate=LayerDropConfig(0.5, seed=77), seed=1)
    model = injected("BertForSequenceClassification", seed=77)
    expected = []
    for step in range(6):
        for micro_step in range(2):
            set_step(model, step, micro_step)
            expected += drawn(model, batch_for("BertForSequenceClassification"))[0]["encoder"]
    assert runs == expected


def test_a_trainer_that_was_built_too_early_is_an_error_and_not_one_mask_for_all_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", list(PLAIN_CALLBACKS))
    model = build("BertForSequenceClassification")
    trainer = trainer_for(model, tmp_path)
    inject_layerdrop(model, 0.5)
    with pytest.raises(LayerDropStateError, match="before LayerDrop was injected"):
        trainer.train()


def test_trainer_leaves_models_without_layerdrop_alone(tmp_path):
    inject_layerdrop(build("BertModel"), 0.5)  # has registered its callback with Trainer by now
    model = build("BertForSequenceClassification")
    trainer = trainer_for(model, tmp_path, max_steps=1)
    trainer.train()
    assert not any("layerdrop_rate" in entry for entry in trainer.state.log_history)
    assert getattr(model.config, "hf_layerdrop", None) is None


@pytest.mark.parametrize("given", [None, "google-bert/bert-base-uncased", BertConfig(), BertModel], ids=type)
def test_what_is_no_model_in_memory_is_refused_in_words(given):
    for call in (
        lambda: inject_layerdrop(given, 0.2),
        lambda: prune_layers(given, 2),
        lambda: sub_network(given, 2).__enter__(),
        lambda: evaluate_depths(given, [], depths=[1]),
    ):
        with pytest.raises(UnsupportedModelError, match=f"Got a {type(given).__name__}, but LayerDrop is for models"):
            call()
    for call in (lambda: remove_layerdrop(given), lambda: set_rates(given, 0.1), lambda: layerdrop_state(given)):
        with pytest.raises(LayerDropStateError, match="not injected"):
            call()


def test_what_changes_a_model_returns_it():
    model = build("BertModel")
    assert inject_layerdrop(model, 0.5) is model
    assert remove_layerdrop(model) is model
    assert prune_layers(model, 2) is model
