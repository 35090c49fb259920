"""torch.compile: regional compilation of a model that skips layers, and one graph of a model that masks them."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import pytest
import torch
from accelerate.utils import compile_regions
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from conftest import (
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    gradients_of,
    layers_of,
    loss_of,
    output_of,
)
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    LayerDropBertForSequenceClassification,
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    remove_layerdrop,
    set_rates,
    set_step,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection import compiling

COMPILED = ["BertForSequenceClassification", "RobertaForMaskedLM", "BartForConditionalGeneration"]
BERT = "BertForSequenceClassification"


@pytest.fixture(autouse=True)
def _a_fresh_compiler():
    torch._dynamo.reset()
    compiling.warn_of_whole_model.cache_clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def without_cache(head):
    """Build a model that hands no cache to its layers: one would make a graph a layer, with or without LayerDrop."""
    model = build(head)
    model.config.use_cache = False
    return model


def injected(head, rate=0.5, *, execution="skip", seed=1, **settings):
    model = without_cache(head)
    inject_layerdrop(model, LayerDropConfig(rate, seed=seed, execution=execution, **settings))
    return model.train()


def masked(head, rate=0.5, **settings):
    return injected(head, rate, execution="mask", **settings)


def all_layers(model):
    return [layer for layers in layers_of(model).values() for layer in layers]


def dropped_as_zeros(gradients, like):
    """Return gradients with zeros in place of None, where the other model has any gradient."""
    return {
        name: torch.zeros_like(like[name]) if gradient is None and like[name] is not None else gradient
        for name, gradient in gradients.items()
    }


def compile_by_hand(model, backend):
    for layer in all_layers(model):
        layer.compile(backend=backend)
    return model


def assert_trains_alike(found, model, expected, head, steps):
    """Compare the losses and gradients of training steps; return how many sets of layers ran in them."""
    patterns = set()
    for step in range(steps):
        set_step(model, step)
        set_step(expected, step)
        loss, other = loss_of(found, batch_for(head)), loss_of(expected, batch_for(head))
        assert torch.allclose(loss, other, atol=1e-5)
        gradients, others = gradients_of(model, loss), gradients_of(expected, other)
        patterns.add(tuple(name for name, gradient in others.items() if gradient is None))
        if layerdrop_state(model).config.execution == "mask":
            others = dropped_as_zeros(others, gradients)
        assert_same_tensors(gradients, others, atol=1e-5)
    return len(patterns)


# --- regional compilation, and skipping ---------------------------------------------------------------------------


@pytest.mark.cases(5)
@pytest.mark.parametrize("how", ["by hand", "before", "compile_regions"])
@pytest.mark.parametrize("head", COMPILED)
def test_regional_compilation_makes_a_graph_for_each_shape_of_block_whatever_is_dropped(head, how):
    graphs = CompileCounterWithBackend("eager")
    model, expected = without_cache(head).train(), injected(head)
    if how == "before":
        compile_by_hand(model, graphs)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    found = model
    if how == "by hand":
        compile_by_hand(model, graphs)
    if how == "compile_regions":
        found = compile_regions(model, backend=graphs)
    patterns = set()
    assert_trains_alike(found, model, expected, head, steps=3)
    after_three = graphs.frame_count
    for step in range(32):
        set_step(model, step)
        loss_of(found, batch_for(head)).backward()
        patterns.add(layerdrop_state(model).draws["encoder"].draw())
    assert len(patterns) >= 12
    assert graphs.frame_count == after_three
    shapes = len(layers_of(model))  # BART's encoder and decoder blocks are two
    if how != "compile_regions":  # which compiles what is around the blocks, too
        assert after_three <= 2 * shapes
    else:
        repeated = [module for module in found.modules() if isinstance(module, nn.ModuleList) and len(module) == DEPTH]
        assert len(repeated) == shapes
        assert all(hasattr(layer, "_orig_mod") for layers in repeated for layer in layers)


def test_regional_compilation_with_a_frozen_layer_takes_one_more_graph_at_most():
    graphs = CompileCounterWithBackend("eager")
    model, expected = injected(BERT), injected(BERT)
    for each in (model, expected):
        each.bert.embeddings.requires_grad_(False)
    compile_by_hand(model, graphs)
    assert_trains_alike(model, model, expected, BERT, steps=3)
    after_three = graphs.frame_count
    assert after_three <= 2
    assert_trains_alike(model, model, expected, BERT, steps=32)
    assert graphs.frame_count == after_three


def test_a_whole_model_that_skips_is_compiled_in_parts_without_end_of_graphs_and_says_so_once(caplog):
    graphs = CompileCounterWithBackend("eager")
    model, expected = injected(BERT), injected(BERT)
    compiled = torch.compile(model, backend=graphs)
    with caplog.at_level(logging.WARNING, "hf_layerdrop"):
        assert_trains_alike(compiled, model, expected, BERT, steps=3)
        after_three = graphs.frame_count
        assert_trains_alike(compiled, model, expected, BERT, steps=8)
    assert graphs.frame_count == after_three
    (message,) = [record.message for record in caplog.records if record.name.startswith("hf_layerdrop")]
    assert "execution='mask'" in message
    assert "regional compilation" in message


def test_the_warning_comes_with_model_compile_too_and_not_with_regional_compilation(caplog):
    regional, whole = compile_by_hand(injected(BERT), "eager"), injected("BertModel")
    whole.encoder.compile(backend="eager")
    with caplog.at_level(logging.WARNING, "hf_layerdrop"):
        loss_of(regional, batch_for(BERT)).backward()
        assert not caplog.records
        loss_of(whole, batch_for("BertModel")).backward()
    assert len(caplog.records) == 1


def test_one_full_graph_of_a_model_that_skips_is_refused_with_what_to_do():
    compiled = torch.compile(injected(BERT), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="execution='mask'"):
        compiled(**batch_for(BERT))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_model_that_drops_nothing_compiles_to_one_full_graph(rate):
    model = injected(BERT, rate)
    model.train(rate == 0)
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    assert torch.allclose(output_of(compiled, batch_for(BERT)), output_of(build(BERT), batch_for(BERT)), atol=1e-6)
    assert graphs.frame_count == 1


# --- masking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["bernoulli", "depth"])
def test_masking_gives_the_loss_and_gradients_of_skipping_and_zeros_where_that_gives_none(head, sampler):
    model, expected = masked(head, sampler=sampler), injected(head, sampler=sampler)
    patterns = set()
    for _ in range(6):
        loss, other = loss_of(model, batch_for(head)), loss_of(expected, batch_for(head))
        assert torch.equal(loss, other)
        gradients, others = gradients_of(model, loss), gradients_of(expected, other)
        patterns.add(tuple(name for name, gradient in others.items() if gradient is None))
        assert_same_tensors(gradients, dropped_as_zeros(others, gradients))
    assert len(patterns) > 2


@pytest.mark.cases(2)
@pytest.mark.parametrize("head", COMPILED)
def test_a_masked_model_is_one_full_graph_for_all_drops(head):
    graphs = CompileCounterWithBackend("aot_eager")
    model, expected = masked(head), injected(head)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    assert assert_trains_alike(compiled, model, expected, head, steps=16) > 5
    assert graphs.frame_count == 1


@pytest.mark.cases(3)
@pytest.mark.parametrize("how", ["model.compile", "wrapper", "function", "by hand", "compile_regions"])
def test_a_masked_model_draws_anew_wherever_the_compiled_region_begins(how):
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, **batch):
            return self.inner(**batch)

    graphs = CompileCounterWithBackend("eager")  # where a region begins is seen before any backend has it
    model, expected = masked(BERT), injected(BERT)
    if how == "model.compile":
        model.compile(backend=graphs, fullgraph=True)
    if how == "by hand":
        compile_by_hand(model, graphs)
    found = {
        "wrapper": lambda: torch.compile(Wrapper(model), backend=graphs, fullgraph=True),
        "function": lambda: torch.compile(lambda **batch: model(**batch), backend=graphs, fullgraph=True),
        "compile_regions": lambda: compile_regions(model, backend=graphs),
    }.get(how, lambda: model)()
    assert_trains_alike(found, model, expected, BERT, steps=2)
    after_two = graphs.frame_count
    assert assert_trains_alike(found, model, expected, BERT, steps=10) > 4
    assert graphs.frame_count == after_two
    assert after_two == 1 or how == "compile_regions"


def test_two_forwards_in_one_graph_and_before_one_backward_draw_each_for_itself():
    batches = [batch_for(BERT, seed) for seed in (0, 1)]

    def both(model):
        return [loss_of(model, batch) for batch in batches]

    model, expected = masked(BERT), injected(BERT)
    for found in (torch.compile(lambda: both(model), backend="aot_eager", fullgraph=True), lambda: both(model)):
        for step in range(4):
            set_step(model, step)
            set_step(expected, step)
            gradients, others = gradients_of(model, *found()), gradients_of(expected, *both(expected))
            assert_same_tensors(gradients, dropped_as_zeros(others, gradients), atol=1e-5)


def test_a_schedule_changes_the_rates_of_a_graph_that_stays():
    graphs = CompileCounterWithBackend("eager")
    model = masked(BERT, 0.5)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    outputs = set()
    for step in range(8):
        set_rates(model, 0.1 + 0.1 * step)
        set_step(model, 0)
        outputs.add(output_of(compiled, batch_for(BERT)).sum().item())
    assert len(outputs) > 2
    set_rates(model, [0, 1, 0, 1])
    cut = injected(BERT, [0, 1, 0, 1])
    assert torch.allclose(output_of(compiled, batch_for(BERT)), output_of(cut, batch_for(BERT)), atol=1e-6)
    assert graphs.frame_count == 1


def test_a_masked_model_at_rate_0_counts_its_layers_and_compiles_to_one_full_graph():
    model = masked(BERT, 0.0)
    for _ in range(3):
        output_of(model, batch_for(BERT))
    with torch.no_grad():
        output_of(model, batch_for(BERT))
    output_of(model.eval(), batch_for(BERT))
    assert layerdrop_state(model).draws["encoder"].layer_forwards == 3 * DEPTH
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.train(), backend=graphs, fullgraph=True)
    for _ in range(3):
        loss_of(compiled, batch_for(BERT)).backward()
    assert graphs.frame_count == 1


def test_nan_in_a_dropped_layer_reaches_nothing():
    model, expected = masked(BERT, [0, 1, 0, 0]), injected(BERT, [0, 1, 0, 0])
    with torch.no_grad():
        for parameter in layers_of(model)["encoder"][1].parameters():
            parameter.fill_(torch.nan)
    loss, other = loss_of(model, batch_for(BERT)), loss_of(expected, batch_for(BERT))
    assert torch.equal(loss, other)
    gradients, others = gradients_of(model, loss), gradients_of(expected, other)
    kept = [name for name, gradient in others.items() if gradient is not None]
    assert len(kept) < len(others)
    assert_same_tensors({name: gradients[name] for name in kept}, {name: others[name] for name in kept})


def test_what_would_overflow_in_a_dropped_layer_leaves_its_gradients_zero():
    model = masked(BERT, [0, 1, 0, 0])
    hidden = []
    layers_of(model)["encoder"][1].register_forward_pre_hook(lambda _, args: hidden.append(args[0].detach()))
    gradients = gradients_of(model, loss_of(model, batch_for(BERT)))
    assert not hidden[0].any()
    zeros = [gradient for name, gradient in gradients.items() if ".layer.1." in name]
    assert zeros
    assert not any(gradient.any() for gradient in zeros)


@pytest.mark.parametrize(("head", "compile_it"), [(BERT, False), (BERT, True), ("BartForConditionalGeneration", False)])
def test_recorded_hidden_states_are_those_that_were_handed_on(head, compile_it):
    model, expected = masked(head), injected(head)
    output_of(model, batch_for(head), output_hidden_states=True)  # transformers hangs up its hooks outside of graphs
    found = torch.compile(model, backend="eager", fullgraph=True) if compile_it else model
    for step in range(4):
        set_step(model, step)
        set_step(expected, step)
        states = found(**batch_for(head), output_hidden_states=True)
        others = expected(**batch_for(head), output_hidden_states=True)
        names = [name for name in others if "hidden_state" in name and isinstance(others[name], tuple)]
        assert names
        for name in names:
            assert len(states[name]) == DEPTH + 1
            for one, other in zip(states[name], others[name], strict=True):
                assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "execution"),
    [
        ("reentrant", "eager"),
        ("not reentrant", "eager"),
        ("around each layer", "eager"),
        ("around the model", "eager"),
        ("not reentrant", "compiled"),
        ("around each layer", "compiled"),
        ("around the model", "compiled"),
    ],
)
def test_recomputed_forwards_use_the_mask_of_their_first_run(form, execution):
    model, expected = masked(BERT), injected(BERT)
    if form in ("reentrant", "not reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": form == "reentrant"})
        model.enable_input_require_grads()
    if form == "around each layer":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        layers = model.bert.encoder.layer
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer)
    compiled = torch.compile(model, backend="aot_eager") if execution == "compiled" else model

    def found(**batch):
        return checkpoint(compiled, **batch, use_reentrant=False) if form == "around the model" else compiled(**batch)

    for step in range(3):
        set_step(model, step)
        set_step(expected, step)
        losses = [loss_of(found, batch_for(BERT, seed)) for seed in (0, 1)]
        others = gradients_of(expected, *(loss_of(expected, batch_for(BERT, seed)) for seed in (0, 1)))
        sum(losses).backward()
        gradients = {
            name.replace("_checkpoint_wrapped_module.", ""): parameter.grad
            for name, parameter in model.named_parameters()
        }
        assert_same_tensors(gradients, dropped_as_zeros(others, gradients), atol=1e-5)
        model.zero_grad()


def test_eval_rate_zero_and_generate_of_a_masked_model_are_those_of_the_untouched(head):
    plain, model = without_cache(head), masked(head, 0.9)
    assert torch.equal(output_of(model.eval(), batch_for(head)), output_of(plain, batch_for(head)))
    set_rates(model, 0.0)
    assert torch.equal(output_of(model.train(), batch_for(head)), output_of(plain.train(), batch_for(head)))
    set_rates(model, 0.9)
    assert not torch.equal(output_of(model, batch_for(head)), output_of(plain, batch_for(head)))
    if "Generation" in head or "CausalLM" in head:
        batch = batch_for(head) if "Generation" in head else {"input_ids": batch_for(head)["input_ids"]}
        tokens = [each.generate(**batch, max_new_tokens=5, do_sample=False) for each in (plain.eval(), model.train())]
        assert torch.equal(*tokens)


def test_a_masked_model_has_the_same_state_dict_and_survives_copies_pickle_and_removal(tmp_path):
    plain, model = build(BERT), masked(BERT)
    assert_same_tensors(model.state_dict(), plain.state_dict())
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in plain.named_buffers()]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    first = [output_of(each, batch_for(BERT)) for each in (*copies, model, injected(BERT))]
    assert all(torch.equal(output, first[0]) for output in first)
    for each in (*copies, model):
        remove_layerdrop(each)
        assert type(each.bert.encoder) is type(plain.bert.encoder)
        assert set(vars(each.bert.encoder)) == set(vars(plain.bert.encoder))
        assert torch.equal(output_of(each, batch_for(BERT)), output_of(plain.train(), batch_for(BERT)))
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))  # and the other way of dropping takes its place
    assert torch.equal(output_of(model, batch_for(BERT)), first[0])


def test_the_execution_is_saved_and_used_again_when_the_model_is_loaded(tmp_path):
    model = LayerDropBertForSequenceClassification(build(BERT).config)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, execution="mask"))
    model.save_pretrained(tmp_path)
    loaded = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path).train()
    assert layerdrop_state(loaded).config.execution == "mask"
    loss_of(torch.compile(loaded, backend="eager", fullgraph=True), batch_for(BERT)).backward()
    assert not [name for name, parameter in loaded.named_parameters() if parameter.grad is None]


def test_masking_goes_with_autocast():
    model, expected = masked(BERT), injected(BERT)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(4):
        set_step(model, step)
        set_step(expected, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, other = output_of(compiled, batch_for(BERT)), output_of(expected, batch_for(BERT))
        assert found.dtype == other.dtype
        assert torch.allclose(found, other, atol=0.1)


def test_forwards_without_gradient_do_not_move_the_draws_of_a_compiled_model():
    model, expected = masked(BERT), injected(BERT)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        for _ in range(2):
            with torch.no_grad():
                found, other = output_of(compiled, batch_for(BERT)), output_of(expected, batch_for(BERT))
            assert torch.allclose(found, other, atol=1e-6)
        assert torch.allclose(output_of(compiled, batch_for(BERT)), output_of(expected, batch_for(BERT)), atol=1e-6)
    states = [layerdrop_state(each).state_dict() for each in (model, expected)]
    assert states[0] == states[1]


def test_learned_rates_are_refused_under_a_mask():
    with pytest.raises(LayerDropConfigError, match="execution='skip'"):
        LayerDropConfig(0.2, sampler="learned", execution="mask")


# --- what was compiled or wrapped before --------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_a_model_that_was_compiled_in_place_and_has_run_can_still_be_injected(execution):
    graphs = CompileCounterWithBackend("eager")
    model, expected = build(BERT).train(), injected(BERT)
    model.compile(backend=graphs)
    output_of(model, batch_for(BERT))
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, execution=execution))
    assert assert_trains_alike(model, model, expected, BERT, steps=4) > 2


@pytest.mark.parametrize("what", ["model", "layer", "regions"])
def test_a_model_in_a_compiled_wrapper_is_refused_and_stays_as_it_was(what):
    model = build(BERT)
    if what == "model":
        wrapped = torch.compile(model, backend="eager")
    elif what == "layer":
        wrapped = model
        model.bert.encoder.layer[2] = torch.compile(model.bert.encoder.layer[2], backend="eager")
    else:
        wrapped = compile_regions(model, backend="eager")
    with pytest.raises(LayerDropStateError, match=r"torch\.compile before .* on the plain model first"):
        inject_layerdrop(wrapped, 0.5)
    assert not hasattr(model.config, "hf_layerdrop")


@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_a_rate_that_changes_in_the_middle_of_accumulation_holds_from_the_next_forward_on(execution):
    model = injected(BERT, 0.0, execution=execution)
    loss_of(model, batch_for(BERT, 0)).backward()
    set_rates(model, [0, 1, 0, 1])
    set_step(model, 0, micro_step=1)
    loss_of(model, batch_for(BERT, 1)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    plain, cut = build(BERT).train(), injected(BERT, [0, 1, 0, 1])
    whole = gradients_of(plain, loss_of(plain, batch_for(BERT, 0)))
    rest = gradients_of(cut, loss_of(cut, batch_for(BERT, 1)))
    expected = {name: whole[name] + rest[name] if rest[name] is not None else whole[name] for name in whole}
    assert any(rest[name] is None for name in whole)
    assert_same_tensors(found, expected, atol=1e-5)
