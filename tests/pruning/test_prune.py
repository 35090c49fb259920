"""Cut a model in memory: promises 8 to 11 and 13 of the design, as far as no checkpoint is read."""

import copy
import pickle
import threading
import time

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, AlbertModel, LlamaConfig, LlamaModel

from conftest import (
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    cut_by_hand,
    drawn,
    keep_all_stacks,
    layers_of,
    output_of,
)
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, remove_layerdrop, sub_network
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import KeepLayersError, LayerDropStateError, UnsupportedModelError
from hf_layerdrop.pruning.prune import Cutter, count_parameters

GENERATING = ["BertLMHeadModel", "RobertaForCausalLM", "BartForConditionalGeneration", "BartForCausalLM"]
BAD_KEEP_LAYERS = [
    [4],
    [-5],
    [0, 0],
    [],
    0,
    5,
    "2:2",
    "::-1",
    "every_othr",
    "first:9",
    [1.5],
    {"middle": [0]},
    b"6",
]


def snapshot(model):
    """Return all that a cut changes, and that a refused or undone one must leave."""
    state = {name: (id(tensor), tuple(tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = [
        (name, id(module), type(module), module.__dict__.get("layer_idx")) for name, module in model.named_modules()
    ]
    configs = [
        copy.deepcopy(m.config.to_dict())
        for m in model.modules()
        if hasattr(m, "config") and hasattr(m.config, "to_dict")
    ]
    return state, modules, configs


def layer_indices(model):
    """Return the layer index that each part of each layer files its keys and values under."""
    return {
        stack: [
            {part.layer_idx for part in layer.modules() if getattr(part, "layer_idx", None) is not None}
            for layer in layers
        ]
        for stack, layers in layers_of(model).items()
    }


# --- The cut --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [[0, 2], [1, 3], [2], [3, 1, 0]])
def test_a_cut_equals_the_model_cut_by_hand_tensor_by_tensor(any_head, kept):
    model, batch = build(any_head), batch_for(any_head)
    full = output_of(model, batch)
    cut = cut_by_hand(model, keep_all_stacks(model, sorted(kept)))
    other = cut_by_hand(model, keep_all_stacks(model, [layer for layer in (0, 1, 2, 3) if layer not in kept]))
    memory = {id(parameter) for parameter in model.parameters()}
    prune_layers(model, keep_all_stacks(model, kept))
    assert_same_tensors(model.state_dict(), cut.state_dict())
    output = output_of(model, batch)
    assert torch.equal(output, output_of(cut, batch))
    assert not torch.allclose(output, full, atol=1e-3)
    assert not torch.allclose(output, output_of(other, batch), atol=1e-3)
    assert {id(parameter) for parameter in model.parameters()} < memory, "a weight was copied"
    ours, theirs = model.config.to_dict(), cut.config.to_dict()
    ours.pop("hf_layerdrop")
    assert ours == theirs
    assert layer_indices(model) == layer_indices(cut)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_stack_that_is_not_named_stays_whole(stack):
    model, batch = build("BartForConditionalGeneration"), batch_for("BartForConditionalGeneration")
    other = {"encoder": "decoder", "decoder": "encoder"}[stack]
    cut = cut_by_hand(model, {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], stack: [1, 3]})
    wrong = cut_by_hand(model, {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], other: [1, 3]})
    prune_layers(model, {stack: [1, 3]})
    assert_same_tensors(model.state_dict(), cut.state_dict())
    assert torch.equal(output_of(model, batch), output_of(cut, batch))
    assert not torch.allclose(output_of(model, batch), output_of(wrong, batch), atol=1e-3)
    assert getattr(model.config, f"{stack}_layers") == 2
    assert getattr(model.config, f"{other}_layers") == DEPTH


@pytest.mark.parametrize(
    ("spec", "kept"),
    [(2, [0, 3]), ("3", [0, 1, 3]), ("::2", [0, 2]), ("last:2", [2, 3]), ([-1, 0], [0, 3]), (None, [0, 1, 2, 3])],
)
def test_every_form_of_keep_layers_is_read(spec, kept):
    model = build("BertModel")
    cut = cut_by_hand(model, {"encoder": kept})
    prune_layers(model, spec)
    assert_same_tensors(model.state_dict(), cut.state_dict())


def test_fields_with_one_entry_a_layer_are_cut_along():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16
    )
    config.sliding_window = 2
    config.layer_types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = LlamaModel(config).eval()
    prune_layers(model, [0, 1])
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.num_hidden_layers == 2
    assert layer_indices(model) == {"layers": [{0}, {1}]}
    assert model(torch.tensor([[5, 6, 7]])).last_hidden_state.shape == (1, 3, 16)


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "RobertaForMaskedLM", "BartForConditionalGeneration", "BartForCausalLM"]
)
def test_tied_weights_stay_tied(name):
    model = build(name)
    prune_layers(model, keep_all_stacks(model, [1, 2]))
    output, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert output is embedding
    before = output_of(model, batch_for(name))
    with torch.no_grad():
        embedding.mul_(2)
    assert not torch.allclose(output_of(model, batch_for(name)), before)


def test_parameters_are_counted_once_and_only_those_that_are_left():
    model = build("BertForMaskedLM")
    full = count_parameters(model)
    assert full == sum(
        {id(parameter): parameter.numel() for parameter in model.state_dict(keep_vars=True).values()}.values()
    )
    a_layer = sum(parameter.numel() for parameter in layers_of(model)["encoder"][0].parameters())
    prune_layers(model, [0, 3])
    assert count_parameters(model) == full - 2 * a_layer


# --- Rates and provenance -------------------------------------------------------------------------


def test_a_pruned_model_drops_nothing_until_it_is_asked_to(head):
    native = {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9} if head.startswith("Bart") else {}
    model, batch = build(head, **native), batch_for(head)
    inject_layerdrop(model, LayerDropConfig(0.9, seed=3))
    trained_with = model.config.hf_layerdrop["trained_with"]
    prune_layers(model, keep_all_stacks(model, [0, 2]))
    with pytest.raises(LayerDropStateError):
        layerdrop_state(model)
    assert drawn(model, batch, 8) == [keep_all_stacks(model, [0, 1])] * 8
    saved = model.config.hf_layerdrop
    assert saved["rates"] == keep_all_stacks(model, [0.0, 0.0])
    assert saved["trained_with"] == trained_with
    assert trained_with["rate"] == 0.9
    for stack in layers_of(model) if native else ():
        rate = getattr(model.config, f"{stack}_layerdrop")
        assert isinstance(rate, float)
        assert rate == 0.0
    inject_layerdrop(model, (0, 1))
    assert drawn(model, batch) == [keep_all_stacks(model, [0])]


def test_provenance_names_the_layers_of_this_checkpoint_and_of_the_root():
    model = build("BartForConditionalGeneration")
    prune_layers(model, {"encoder": [1, 2, 3]}, source="me/mine", strategy=None)
    assert model.config.hf_layerdrop["keep_layers"] == {"encoder": [1, 2, 3], "decoder": [0, 1, 2, 3]}
    assert model.config.hf_layerdrop["source"] == "me/mine"
    assert "strategy" not in model.config.hf_layerdrop
    prune_layers(model, {"encoder": [0, 2], "decoder": [3]}, strategy="by hand")
    assert model.config.hf_layerdrop["keep_layers"] == {"encoder": [0, 2], "decoder": [3]}
    assert model.config.hf_layerdrop["root_keep_layers"] == {"encoder": [1, 3], "decoder": [3]}
    assert model.config.hf_layerdrop["strategy"] == "by hand"
    assert model.config.hf_layerdrop["source"] == "me/mine"


def test_a_model_that_is_pruned_twice_equals_the_one_that_was_cut_once(head):
    twice, once = build(head), build(head)
    prune_layers(twice, keep_all_stacks(twice, [0, 1, 3]))
    prune_layers(twice, keep_all_stacks(twice, [1, 2]))
    prune_layers(once, keep_all_stacks(once, [1, 3]))
    assert_same_tensors(twice.state_dict(), once.state_dict())
    assert torch.equal(output_of(twice, batch_for(head)), output_of(once, batch_for(head)))
    assert layer_indices(twice) == layer_indices(once)
    assert twice.config.hf_layerdrop["root_keep_layers"] == once.config.hf_layerdrop["root_keep_layers"]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", BAD_KEEP_LAYERS, ids=repr)
def test_a_cut_that_is_refused_changes_nothing(head, spec):
    model = build(head)
    inject_layerdrop(model, 0.5)
    before = snapshot(model)
    by_stack = spec if isinstance(spec, dict) else dict.fromkeys(layers_of(model), spec)
    for refused in (prune_layers, lambda model, spec: sub_network(model, spec).__enter__()):
        with pytest.raises(KeepLayersError) as error:
            refused(model, by_stack)
        assert "\n" not in str(error.value)
        assert snapshot(model) == before
    layerdrop_state(model)


@pytest.mark.parametrize("spec", ["::2", [0, 1], torch.tensor([0, 1])])
def test_bare_indices_on_a_model_with_two_stacks_are_refused_and_name_them(spec):
    model = build("BartModel")
    before = snapshot(model)
    with pytest.raises(KeepLayersError, match=r"encoder.*decoder"):
        prune_layers(model, spec)
    assert snapshot(model) == before


@pytest.mark.parametrize(("spec", "named"), [(2, (0, 3)), ("every_other", (0, 2)), ("first:2", (0, 1))])
def test_a_bare_depth_or_rule_cuts_both_stacks_of_an_encoder_decoder(spec, named):
    whole = build("BartModel").eval()
    cut = prune_layers(copy.deepcopy(whole), spec)
    same = prune_layers(copy.deepcopy(whole), {"encoder": named, "decoder": named})
    assert_same_tensors(cut.state_dict(), same.state_dict())
    with sub_network(whole, spec) as kept:
        assert kept == {"encoder": named, "decoder": named}
        assert torch.equal(output_of(whole, batch_for("BartModel")), output_of(cut, batch_for("BartModel")))


def test_layers_that_are_shared_are_refused_with_the_reason():
    model = AlbertModel(
        AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    )
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match="ALBERT runs one shared layer"):
        prune_layers(model, 2)
    assert snapshot(model) == before


# --- In place -------------------------------------------------------------------------------------


def test_a_sub_network_in_place_is_the_pruned_model_and_leaves_no_trace(any_head):
    model, batch = build(any_head), batch_for(any_head)
    full, before = output_of(model, batch), snapshot(model)
    for kept in ([0, 2], [1, 3], [2]):
        pruned = copy.deepcopy(model)
        prune_layers(pruned, keep_all_stacks(model, kept))
        with sub_network(model, keep_all_stacks(model, kept)) as names:
            assert names == {stack: tuple(kept) for stack in layers_of(pruned)}
            assert torch.equal(output_of(model, batch), output_of(pruned, batch))
            assert layer_indices(model) == layer_indices(pruned)
            assert not torch.allclose(output_of(model, batch), full, atol=1e-3)
        assert snapshot(model) == before
        assert torch.equal(output_of(model, batch), full)


def test_a_sub_network_is_put_back_after_an_error(head):
    model = build(head)
    before = snapshot(model)

    def fail():
        with sub_network(model, keep_all_stacks(model, [1])):
            assert snapshot(model) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "config", [0.5, LayerDropConfig(0.5, structure="head"), LayerDropConfig(0.5, execution="mask")]
)
def test_a_part_of_an_injected_model_is_not_cut_past_the_draws_of_the_whole(config):
    model = inject_layerdrop(build("BertForSequenceClassification"), config)
    for cut in (prune_layers, lambda part, kept: sub_network(part, kept).__enter__(), inject_layerdrop):
        with pytest.raises(LayerDropStateError, match="BertModel is a part of a model in which LayerDrop is injected"):
            cut(model.bert, [0, 2] if cut is not inject_layerdrop else 0.1)
    assert len(model.bert.encoder.layer) == 4
    prune_layers(remove_layerdrop(model).bert, [0, 2])
    assert len(model.bert.encoder.layer) == 2


def test_an_injected_model_is_copied_outside_of_its_blocks_alone():
    model = inject_layerdrop(build("BertModel"), 0.5)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(LayerDropStateError, match="copy it outside of the block"), sub_network(model, [0, 2]):
            copied(model)
    assert not any(draw.paused for draw in layerdrop_state(copy.deepcopy(model)).draws.values())
    remove_layerdrop(model)
    with sub_network(model, [0, 2]):
        student = copy.deepcopy(model)
    assert depths_of(student) == {"encoder": 2}


def test_sub_networks_nest_and_count_in_the_numbering_at_hand():
    model, batch = build("BertModel"), batch_for("BertModel")
    expected = output_of(cut_by_hand(model, {"encoder": [1, 3]}), batch)
    before = snapshot(model)
    with sub_network(model, [0, 1, 3]), sub_network(model, [1, 2]):
        assert torch.equal(output_of(model, batch), expected)
    assert snapshot(model) == before


def test_a_model_in_training_keeps_its_layerdrop_through_a_sub_network(head):
    model, twin, batch = build(head), build(head), batch_for(head)
    for each in (model, twin):
        inject_layerdrop(each, LayerDropConfig(0.5, seed=4))
    expected = drawn(twin, batch, 4)
    found = drawn(model, batch, 2)
    model.eval()
    with sub_network(model, keep_all_stacks(model, [1, 3])), torch.no_grad():
        assert torch.equal(
            output_of(model, batch), output_of(cut_by_hand(build(head), keep_all_stacks(twin, [1, 3])), batch)
        )
    assert found + drawn(model, batch, 2) == expected


def test_a_sub_network_of_a_model_in_training_drops_nothing_and_saves_as_the_pruned_model(head, tmp_path):
    model, twin, batch = build(head), build(head), batch_for(head)
    for each in (model, twin):
        inject_layerdrop(each, LayerDropConfig(0.5, seed=4))
    expected, written = drawn(twin, batch, 4), copy.deepcopy(model.config.hf_layerdrop)
    keep_layers = keep_all_stacks(model, [1, 3])
    with sub_network(model, keep_layers):
        assert drawn(model, batch, 6) == [keep_all_stacks(twin, [0, 1])] * 6
        model.save_pretrained(tmp_path / "in place")
        with pytest.raises(LayerDropStateError, match="with block"):
            prune_layers(model, keep_all_stacks(twin, [0]))
    assert drawn(model, batch, 4) == expected
    assert model.config.hf_layerdrop == written
    prune_layers(twin, keep_layers)
    twin.save_pretrained(tmp_path / "pruned")
    saved = [getattr(transformers, head).from_pretrained(tmp_path / name) for name in ("in place", "pruned")]
    assert_same_tensors(saved[0].state_dict(), saved[1].state_dict())
    assert saved[0].config.hf_layerdrop == saved[1].config.hf_layerdrop


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_one_cutter_cuts_to_any_set_after_any_other(data):
    model = data.draw(st.sampled_from([CUTTABLE["bert"], CUTTABLE["bart"]]))
    cutter, before = Cutter(model), snapshot(model)
    batch = batch_for(type(model).__name__)
    for _ in range(3):
        sets = st.sets(st.integers(0, DEPTH - 1), min_size=1)
        kept = {stack: tuple(sorted(data.draw(sets))) for stack in cutter.depths}
        cut = cut_by_hand(model, {stack: list(layers) for stack, layers in kept.items()})
        with cutter.sub_network(kept):
            assert torch.equal(output_of(model, batch), output_of(cut, batch))
        assert snapshot(model) == before


CUTTABLE = {"bert": build("BertModel"), "bart": build("BartModel")}


# --- Generation -----------------------------------------------------------------------------------


def left_padded():
    ids = batch_for("BertLMHeadModel", seed=4)["input_ids"].clamp(min=5)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 4)):
        ids[row, :padding], mask[row, :padding] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, *, use_cache=True):
    """Return the tokens of a greedy generation, and the logits of each."""
    answer = model.generate(
        **left_padded(),
        min_new_tokens=7,
        max_new_tokens=7,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return answer.sequences, torch.stack(answer.logits)


@pytest.mark.parametrize("kept", [[0, 2], [1, 2], [3], [1, 2, 3]])
@pytest.mark.parametrize("name", GENERATING)
def test_cached_generation_in_place_equals_the_pruned_and_reloaded_model(name, kept, tmp_path):
    model = build(name)
    keep_layers = keep_all_stacks(model, kept)
    pruned = copy.deepcopy(model)
    prune_layers(pruned, keep_layers)
    pruned.save_pretrained(tmp_path)
    reloaded = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager")
    tokens, logits = generated(reloaded)
    with sub_network(model, keep_layers):
        tokens_in_place, logits_in_place = generated(model)
        tokens_without_cache, logits_without_cache = generated(model, use_cache=False)
    assert torch.equal(tokens_in_place, tokens)
    assert torch.equal(logits_in_place, logits)
    assert torch.equal(tokens_without_cache, tokens)
    torch.testing.assert_close(logits_without_cache, logits, rtol=1e-3, atol=1e-3)
    tokens, logits_without_cache = generated(reloaded, use_cache=False)
    torch.testing.assert_close(logits_without_cache, logits, rtol=1e-3, atol=1e-3)
    _, full_logits = generated(model)
    assert not torch.allclose(full_logits, logits, atol=1e-2)
    other = [layer for layer in range(DEPTH) if layer != kept[0]][: len(kept)]
    with sub_network(model, keep_all_stacks(model, other)):
        assert not torch.allclose(generated(model)[1], logits, atol=1e-2)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_generation_with_one_stack_cut_equals_the_model_cut_by_hand(stack):
    model = build("BartForConditionalGeneration")
    kept = {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], stack: [1, 3]}
    cut = cut_by_hand(model, kept)
    with sub_network(model, {stack: [1, 3]}):
        for use_cache in (True, False):
            found, expected = generated(model, use_cache=use_cache), generated(cut, use_cache=use_cache)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_threads_cut_one_model_in_turns(head):
    model, seen = build(head), []
    expected = {name: len(layers) for name, layers in layers_of(model).items()}

    def cut(layer):
        kept = {name: [layer] for name in expected}
        for _ in range(5):
            with sub_network(model, kept):
                time.sleep(0.001)
                seen.append((depths_of(model), {name: len(layers) for name, layers in layers_of(model).items()}))

    threads = [threading.Thread(target=cut, args=(layer,)) for layer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 15
    assert all(depths == layers == dict.fromkeys(expected, 1) for depths, layers in seen)
    assert depths_of(model) == expected
