"""Several depths in one step: the gradients are those of the cut models' losses, by plain transformers."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, mse_loss
from transformers import PreTrainedModel

from conftest import DEPTH, assert_same_tensors, recorded_runs
from depth_models import HEADS, SEQ2SEQ, Batch, labelled, model_of, original_name, plain_cut
from hf_layerdrop import DepthTraining, LayerDropConfig, backward_depths, inject_layerdrop, prepare_depths
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.injection.inject import layerdrop_state, set_step

CLASSIFIER = "BertForSequenceClassification"
SETS = [[0, 1, 2, 3], [1, 3], [0, 2, 3]]
NAMES = ["loss_depth_4", "loss_depth_1-3", "loss_depth_0-2-3"]
SHIFTED = {"GPT2LMHeadModel", "LlamaForCausalLM"}


def all_stacks(model: PreTrainedModel, layers: list[int]) -> dict[str, list[int]]:
    return dict.fromkeys(depths_of(model), layers)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor | None]:
    return {name: None if weight.grad is None else weight.grad.clone() for name, weight in model.named_parameters()}


def divergence(head: str, own: Any, teacher: Any, batch: Batch, temperature: float) -> torch.Tensor:
    """Write the soft loss once more: KL(teacher || student) over the positions that have a label."""
    found = []
    for name in ("start_logits", "end_logits") if head == "BertForQuestionAnswering" else ("logits",):
        student, target = own[name], teacher[name].detach()
        if student.shape[-1] == 1:
            return mse_loss(student, target)
        labels = batch.get("labels")
        if labels is not None and labels.shape == student.shape[:-1]:
            counts = labels[:, 1:] != -100 if head in SHIFTED else labels != -100
            student, target = ((x[:, :-1] if head in SHIFTED else x)[counts] for x in (student, target))
        each = kl_div(
            log_softmax(student / temperature, -1), log_softmax(target / temperature, -1), log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        found.append(each * temperature**2)
    return sum(found) / len(found)


def expected(
    model: PreTrainedModel, head: str, batch: Batch, sets: list[list[int]], temperature: float, weights: list[float]
) -> tuple[dict[str, torch.Tensor | None], list[torch.Tensor]]:
    """Add up the gradients of plain cut models, under the names of the whole one."""
    total: dict[str, torch.Tensor | None] = {name: None for name, _ in model.named_parameters()}
    teacher = plain_cut(model, all_stacks(model, list(range(DEPTH))))(**batch)
    losses = []
    for layers, weight in zip(sets, weights, strict=True):
        kept = all_stacks(model, layers)
        cut = plain_cut(model, kept)
        outputs = cut(**batch)
        loss = outputs.loss
        losses.append(loss.detach())
        if len(layers) < DEPTH:
            loss = loss + 0.5 * divergence(head, outputs, teacher, batch, temperature)
        (weight * loss).backward()
        for name, parameter in cut.named_parameters():
            original = original_name(name, model, kept)
            if parameter.grad is not None:
                total[original] = parameter.grad if total[original] is None else total[original] + parameter.grad
    return total, losses


@pytest.mark.parametrize("head", HEADS)
def test_the_gradients_are_those_of_the_cut_models_by_plain_transformers(head: str) -> None:
    model, batch = model_of(head), labelled(head)
    weights = [1.0, 2.0, 0.5]
    wanted, losses = expected(model, head, batch, SETS, 2.0, weights)
    training = DepthTraining(
        [all_stacks(model, layers) for layers in SETS], per_step=3, temperature=2.0, distillation_weight=0.5,
        depth_weights=weights,
    )  # fmt: skip
    found = backward_depths(model, batch, training, step=0)
    assert_same_tensors(gradients(model), wanted, atol=1e-5)
    by_depth = [found[name] for name in sorted(found, key=lambda name: name != "loss") if name != "loss"]
    assert sorted(map(float, by_depth)) == pytest.approx(sorted(map(float, losses)), abs=1e-6)
    assert len({round(float(loss), 4) for loss in losses}) == 3  # or one depth would do for all


def test_without_predictions_to_learn_they_are_equal_to_the_bit() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    wanted, _ = expected(model, CLASSIFIER, batch, SETS[:1], 1.0, [1.0])
    backward_depths(model, batch, DepthTraining([4], per_step=1, always=["whole"]), step=0)
    assert_same_tensors(gradients(model), wanted)


def test_a_regression_is_compared_by_its_squared_error() -> None:
    model, batch = model_of(CLASSIFIER, num_labels=1, problem_type="regression"), labelled(CLASSIFIER)
    batch["labels"] = torch.tensor([0.5, -1.0, 2.0])
    wanted, _ = expected(model, CLASSIFIER, batch, SETS, 1.0, [1.0] * 3)
    backward_depths(model, batch, DepthTraining(SETS, per_step=3, distillation_weight=0.5), step=0)
    assert_same_tensors(gradients(model), wanted, atol=1e-5)


@pytest.mark.parametrize("head", [CLASSIFIER, "BartForConditionalGeneration", "LlamaForCausalLM"])
def test_hidden_states_are_compared_after_each_layer_with_those_of_the_whole_model(head: str) -> None:
    model, batch = model_of(head), labelled(head)
    kept = all_stacks(model, [0, 2])
    training = DepthTraining([kept], label_weight=0.0, distillation_weight=0.0, hidden_weight=3.0)
    backward_depths(model, batch, training, step=0)
    found = gradients(model)
    model.zero_grad()
    backward_depths(model, batch, DepthTraining([DEPTH], always=["whole"]), step=0)
    wanted = gradients(model)
    whole = plain_cut(model, all_stacks(model, [0, 1, 2, 3]))(**batch, output_hidden_states=True)
    cut = plain_cut(model, kept)
    outputs, losses = cut(**batch, output_hidden_states=True), []
    for key in ("encoder_hidden_states", "decoder_hidden_states") if head in SEQ2SEQ else ("hidden_states",):
        mask = batch["labels"] != -100 if key == "decoder_hidden_states" else batch["attention_mask"].bool()
        for own, its in ((1, 1), (2, 4)):
            far = 1 - cosine_similarity(outputs[key][own], whole[key][its].detach(), dim=-1)
            losses.append(far[mask].mean())
    (3.0 * sum(losses) / len(losses)).backward()
    for name, weight in cut.named_parameters():
        if weight.grad is not None:
            original = original_name(name, model, kept)
            wanted[original] = wanted[original] + weight.grad
    assert_same_tensors(found, wanted, atol=1e-5)


def test_layers_that_no_depth_of_the_step_runs_have_no_gradient() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    training = DepthTraining([[0, 1], [1]], per_step=2, always=["smallest"], distillation_weight=0.0)
    with recorded_runs(model) as runs:
        backward_depths(model, batch, training, step=0)
    assert runs == {"encoder": [0, 1, 1]}
    alone = [all(weight.grad is None for weight in layer.parameters()) for layer in model.bert.encoder.layer]
    assert alone == [False, False, True, True]
    assert sum(draw.layer_forwards for draw in layerdrop_state(model).draws.values()) == 3


def test_one_graph_is_alive_at_a_time() -> None:
    """Backward comes right after each forward: at no time are the activations of two depths held."""
    model, batch, alive, most = model_of(CLASSIFIER), labelled(CLASSIFIER), [0], [0]

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            alive[0] += tensor.numel()
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= self.tensor.numel()

    def peak(depths: list[int]) -> int:
        model.zero_grad()
        alive[0] = most[0] = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            backward_depths(model, batch, DepthTraining(depths, per_step=len(depths)), step=0)
        return most[0]

    assert peak([4, 3, 2, 1]) <= 1.05 * peak([4, 1])


def test_gradient_checkpointing_changes_nothing() -> None:
    batch, found = labelled(CLASSIFIER), []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = model_of(CLASSIFIER)
        if settings:
            model.activation_checkpointing_enable(settings)
            model.enable_input_require_grads()
        backward_depths(model, batch, DepthTraining(SETS, per_step=3, hidden_weight=0.5), step=0)
        found.append(gradients(model))
    assert_same_tensors(found[1], found[0])
    assert_same_tensors(found[2], found[0], atol=1e-6)  # which adds up in another order


def test_a_checkpoint_around_the_whole_model_finds_the_layers_again() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    backward_depths(model, batch, training := DepthTraining(SETS, per_step=3), step=0)
    wanted = gradients(model)
    model.zero_grad()

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return torch.utils.checkpoint.checkpoint(lambda: self.model(**inputs), use_reentrant=False)

    backward_depths(Around().train(), batch, training, step=0)
    assert_same_tensors(gradients(model), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_each_layer_leaves_out_what_was_left_out(reentrant: bool) -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    training = DepthTraining([[1, 3], [1]], per_step=2, always=["smallest"], distillation_weight=0.0)
    backward_depths(model, batch, training, step=0)
    wanted = gradients(model)
    model.zero_grad()

    class Around(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(self.layer, **kwargs)
            return torch.utils.checkpoint.checkpoint(call, states, *args, use_reentrant=reentrant)

    layers = model.bert.encoder.layer
    for index in range(DEPTH):
        layers[index] = Around(layers[index])
    backward_depths(model, batch, training, step=0)
    found = dict(zip(wanted, gradients(model).values(), strict=True))  # under other names, in the same order
    assert_same_tensors(found, wanted, atol=1e-6)
    assert wanted["bert.encoder.layer.0.output.dense.weight"] is None


def test_mixed_precision_runs_and_is_near() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    whole = backward_depths(model, batch, SETS, step=0)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backward_depths(model, batch, SETS, step=0)["loss"]
    assert torch.isfinite(half)
    assert half != whole
    assert half == pytest.approx(float(whole), rel=0.2)


def test_compiled_layers_give_the_same() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    backward_depths(model, batch, training := DepthTraining(SETS, per_step=3), step=0)
    wanted = gradients(model)
    model.zero_grad()
    for layer in model.bert.encoder.layer:
        layer.compile(backend="aot_eager")
    backward_depths(model, batch, training, step=0)
    assert_same_tensors(gradients(model), wanted, atol=1e-6)


def test_the_step_decides_which_depths_are_trained() -> None:
    model = model_of(CLASSIFIER)
    plan = prepare_depths(model, DepthTraining([4, 3, 2, 1], per_step=3, seed=0))
    drawn = [tuple(network.name for network in plan.of_step(step, micro)) for step in range(6) for micro in range(2)]
    middle = [names[1] for names in drawn]
    assert {names[0] for names in drawn} == {"depth_4"}
    assert {names[2] for names in drawn} == {"depth_1"}
    expected = "2 3 2 3 3 2 2 3 2 3 3 2"  # a list of draws that stay as they are
    assert middle == [f"depth_{depth}" for depth in expected.split()]
    set_step(model, 5)
    assert plan.of_step(0)[1].name == middle[0]
    other = prepare_depths(model, DepthTraining([4, 3, 2, 1], per_step=3, seed=1))
    assert [other.of_step(step)[1].name for step in range(12)] != middle


def test_the_whole_model_is_trained_in_every_so_many_th_step() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    training = DepthTraining([4, 2], per_step=2, whole_every=3)
    ran = [list(backward_depths(model, batch, training, step=step))[1:] for step in range(4)]
    assert ran == [["loss_depth_4", "loss_depth_2"], ["loss_depth_2"], ["loss_depth_2"], ran[0]]


def test_a_list_that_the_model_was_injected_with_is_what_is_trained() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 2], never_drop=[3]))
    found = backward_depths(model, batch, step=0)
    assert list(found) == ["loss", "loss_depth_4", "loss_depth_2"]


def test_global_random_generators_are_not_read_or_advanced() -> None:
    model, batch, before = model_of(CLASSIFIER), labelled(CLASSIFIER), torch.get_rng_state()
    backward_depths(model, batch, DepthTraining([4, 3, 2, 1], per_step=3), step=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_afterwards_the_model_trains_whole_again() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    before = copy.deepcopy(model.state_dict())
    loss = model(**batch).loss
    backward_depths(model, batch, [3, 2], step=0)
    assert torch.equal(model(**batch).loss, loss)
    assert_same_tensors(model.state_dict(), before)
