"""The linear map in place of removed layers: where it goes, what it is, and that nothing else changes."""

import copy

import pytest
import torch

from conftest import assert_same_tensors, build, layers_of, output_of
from healed import PROJECTIONS, apply_by_hand, some_batches, whole_model
from hf_layerdrop import merge_linear_maps, student_of
from hf_layerdrop.distillation.positions import real_tokens
from hf_layerdrop.errors import HealingError
from hf_layerdrop.evaluation.model_or_trainer import quiet_eval
from hf_layerdrop.healing.least_squares import NormalEquations
from hf_layerdrop.healing.linear_map import RemovedRun, removed_runs
from hf_layerdrop.healing.projection import find_projection, recorded_calls


@pytest.fixture(params=PROJECTIONS)
def head(request):
    return request.param


def cut_of(whole, kept=(0, 3)):
    return student_of(whole, dict.fromkeys(layers_of(whole), kept))


def projections_of(model, name):
    return {stack: [layer.get_submodule(name) for layer in layers] for stack, layers in layers_of(model).items()}


def test_the_output_projection_is_found_by_what_it_does(head):
    whole, batch = whole_model(head), some_batches(head)[0]
    name, norm = PROJECTIONS[head]
    layers = {(stack, i): layer for stack, own in layers_of(whole).items() for i, layer in enumerate(own)}
    with torch.no_grad(), quiet_eval(whole), recorded_calls(layers) as calls:
        whole(**batch)
    for key, layer in layers.items():
        found = find_projection(layer, calls[key])
        assert found is not None
        assert found.linear is layer.get_submodule(name)
        assert found.norm is (None if norm is None else layer.get_submodule(norm))
    assert not any(module._forward_hooks for module in whole.modules())


def test_the_merged_model_is_the_map_applied_by_hand(head):
    whole, batches = whole_model(head), some_batches(head)
    cut = cut_of(whole)
    plain = copy.deepcopy(cut)
    merged = merge_linear_maps(cut, whole, batches)
    assert [found.run for found in merged.maps] == [RemovedRun(stack, 0, (1, 2)) for stack in layers_of(whole)]
    name, norm = PROJECTIONS[head]
    norms = [
        (layers_of(plain)[stack][0].get_submodule(norm), layers_of(whole)[stack][2].get_submodule(norm))
        for stack in layers_of(whole)
        if norm is not None
    ]
    unhealed = output_of(plain, batches[0]).detach()
    apply_by_hand(plain, projections_of(plain, name), merged.maps, norms)
    healed = output_of(cut, batches[0]).detach()
    assert torch.allclose(healed, output_of(plain, batches[0]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(healed, unhealed, atol=1e-2)


def states_after(model, stack, layer, batch):
    found = []
    hook = layers_of(model)[stack][layer].register_forward_hook(
        lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return found[0]


def test_the_states_come_nearer_to_those_of_the_whole_model(head):
    whole, batches = whole_model(head), some_batches(head, count=40)
    cut = cut_of(whole)

    def distances():
        found = {}
        for stack in layers_of(whole):
            own, its = states_after(cut, stack, 0, batches[0]), states_after(whole, stack, 2, batches[0])
            counts = real_tokens(own, batches[0], teacher_forced=stack == "decoder" and whole.config.is_encoder_decoder)
            found[stack] = (own - its)[counts].square().mean()
        return found

    before = distances()
    merged = merge_linear_maps(cut, whole, batches, ridge=1e-3)
    after = distances()
    assert all(after[stack] < 0.9 * before[stack] for stack in before)
    assert all(0.05 < found.explained <= 1 for found in merged.maps)


def test_nothing_else_changes_and_undoing_is_exact(head):
    whole, batches = whole_model(head), some_batches(head)
    cut = cut_of(whole)
    before, of_whole = copy.deepcopy(cut.state_dict()), copy.deepcopy(whole.state_dict())
    torch_stream, modes = torch.get_rng_state(), [module.training for module in cut.modules()]
    merged = merge_linear_maps(cut, whole, batches)
    name, norm = PROJECTIONS[head]
    changed = {key for key, value in cut.state_dict().items() if not torch.equal(value, before[key])}
    parts = tuple(part for part in (name, norm) if part)
    assert changed
    assert all(any(f".0.{part}." in key for part in parts) for key in changed)
    assert_same_tensors(whole.state_dict(), of_whole)
    assert torch.equal(torch.get_rng_state(), torch_stream)
    assert [module.training for module in cut.modules()] == modes
    merged.undo()
    assert_same_tensors(cut.state_dict(), before)


def test_padding_does_not_count():
    whole = whole_model("LlamaForCausalLM")
    merged = merge_linear_maps(cut_of(whole), whole, some_batches("LlamaForCausalLM"))
    other = some_batches("LlamaForCausalLM")
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    again = merge_linear_maps(cut_of(whole), whole, other)
    assert merged.maps[0].tokens == sum(int(batch["attention_mask"].sum()) for batch in other)
    assert torch.allclose(merged.maps[0].matrix, again.maps[0].matrix, atol=1e-6)


def test_how_rows_are_batched_changes_nothing():
    rows, wanted = torch.randn(50, 8), torch.randn(50, 8)
    answers = []
    for size in (50, 7, 1):
        equations = NormalEquations(8, shifts=True, device=torch.device("cpu"))
        for begin in range(0, 50, size):
            equations.add(rows[begin : begin + size], wanted[begin : begin + size])
        answers.append(equations.solve(1e-12))
    given = torch.cat([rows, torch.ones(50, 1)], dim=1).double()
    exact = torch.linalg.lstsq(given, wanted.double()).solution
    for matrix, shift in answers:
        assert torch.allclose(matrix, exact[:8], atol=1e-8)
        assert torch.allclose(shift, exact[8], atol=1e-8)
    lost = (wanted.double() - given @ exact).square().sum() / wanted.double().square().sum()
    assert equations.explained(*answers[-1]) == pytest.approx(1 - lost.item(), abs=1e-8)


def test_a_strong_ridge_is_the_plain_cut():
    whole, batches = whole_model("GPT2LMHeadModel"), some_batches("GPT2LMHeadModel")
    cut = cut_of(whole)
    plain = output_of(cut, batches[0]).detach()
    (found,) = merge_linear_maps(cut, whole, batches, ridge=1e12).maps
    assert found.matrix.abs().max() < 1e-6
    found_bias = cut.transformer.h[0].mlp.c_proj.bias - whole.transformer.h[0].mlp.c_proj.bias
    assert torch.allclose(found_bias.double(), found.shift, atol=1e-5)
    assert not torch.equal(plain, output_of(cut, batches[0]))  # the constant costs nothing


def test_runs_of_a_cut():
    assert removed_runs({"layers": (0, 3)}, {"layers": 6}) == [
        RemovedRun("layers", 0, (1, 2)),
        RemovedRun("layers", 1, (4, 5)),
    ]
    assert removed_runs({"layers": (2, 3)}, {"layers": 4}) == []


def test_later_maps_are_fitted_behind_earlier_ones():
    whole, batches = whole_model("LlamaForCausalLM"), some_batches("LlamaForCausalLM")
    cut = cut_of(whole, (0, 2))
    maps = merge_linear_maps(cut, whole, batches).maps
    assert [found.run.removed for found in maps] == [(1,), (3,)]
    alone = cut_of(whole, (0, 2))
    merge_linear_maps(alone, whole, batches)
    assert_same_tensors(alone.state_dict(), cut.state_dict())
    # Without the first one, the second would be another.
    other = copy.deepcopy(alone)
    down = [layer.mlp.down_proj.weight for layer in other.model.layers]
    with torch.no_grad():
        down[0].copy_(whole.model.layers[0].mlp.down_proj.weight)
    assert not torch.allclose(output_of(other, batches[0]), output_of(alone, batches[0]), atol=1e-3)


@pytest.mark.parametrize(
    ("model", "kept", "batches", "said"),
    [
        ("LlamaForCausalLM", (0, 1, 2, 3), None, "all 4 layers of the layers"),
        ("LlamaForCausalLM", (2, 3), None, "before the first kept layer"),
        ("LlamaForCausalLM", (0, 3), [], "no rows"),
        ("Olmo2ForCausalLM", (0, 3), None, "takes no map"),
    ],
)
def test_what_takes_no_map_is_refused_and_unchanged(model, kept, batches, said):
    whole = whole_model(model)
    cut = copy.deepcopy(whole) if len(kept) == 4 else cut_of(whole, kept)
    before = copy.deepcopy(cut.state_dict())
    with pytest.raises(HealingError, match=said) as caught:
        merge_linear_maps(cut, whole, some_batches(model) if batches is None else batches)
    assert "\n" not in str(caught.value)
    assert_same_tensors(cut.state_dict(), before)


def test_other_wrong_input():
    whole = build("BertForSequenceClassification")
    cut = cut_of(whole)
    batches = some_batches("BertForSequenceClassification")
    with pytest.raises(HealingError, match="ridge is 0"):
        merge_linear_maps(cut, whole, batches, ridge=0)
    with pytest.raises(HealingError, match="give keep_layers="):
        merge_linear_maps(cut, whole, batches, keep_layers=[0, 1, 3])
    del cut.config.hf_layerdrop["keep_layers"]
    with pytest.raises(HealingError, match="give keep_layers="):
        merge_linear_maps(cut, whole, batches)
    assert merge_linear_maps(cut, whole, batches, keep_layers=[0, 3]).maps


def test_an_error_on_the_way_puts_the_weights_back():
    whole = whole_model("LlamaForCausalLM")
    cut = cut_of(whole, (0, 2))
    before = copy.deepcopy(cut.state_dict())
    reads = iter(range(100))
    batches = some_batches("LlamaForCausalLM", count=2)

    def fail(module, args, output):
        if next(reads) >= 4:  # in the second map's pass
            raise RuntimeError("lost")

    whole.model.embed_tokens.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="lost"):
        merge_linear_maps(cut, whole, batches)
    assert_same_tensors(cut.state_dict(), before)
