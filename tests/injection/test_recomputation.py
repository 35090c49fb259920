"""Checkpointed forwards drop in their recomputation what they dropped at first: promise 7 of the design."""

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from conftest import (
    assert_same_tensors,
    batch_for,
    build,
    gradients_of,
    loss_of,
    output_of,
    recorded_runs,
)
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_rates, set_step
from hf_layerdrop.errors import LayerDropStateError

REENTRANT = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
STEPS = 6
# A seed by which no decoder is dropped whole: the encoder's output would then be unused, and a reentrant
# checkpoint gives the layers that ran for nothing gradients of zero where there are none without it, in any model.
SEED = 9


def injected(head, rate=0.5):
    model = build(head).train().double()  # reentrant checkpoints add gradients up in another order
    inject_layerdrop(model, LayerDropConfig(rate, seed=SEED))
    return model


def by_transformers(model, reentrant):
    """Turn on transformers' own gradient checkpointing."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    return loss_of


def around_each_layer(model, reentrant):
    """Wrap each layer as accelerate's fsdp_activation_checkpointing does, so that a layer's __call__ is recomputed."""
    implementation = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    for layers in LISTS[type(model).__name__](model):
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer, checkpoint_impl=implementation)
    model.config.use_cache = False  # a recomputed layer would file its keys and values a second time, in any model
    model.enable_input_require_grads()  # what reentrant checkpointing needs of its inputs
    return loss_of


def around_the_model(model, reentrant):
    """Checkpoint the whole forward, as a user's loop may."""

    def loss(model, batch):
        anchor = torch.ones((), requires_grad=True)  # a reentrant checkpoint wants an input with a gradient
        return checkpoint(lambda one: loss_of(model, batch) * one, anchor, use_reentrant=reentrant)

    return loss


def around_the_model_and_inside(model, reentrant):
    """Nest transformers' checkpointing in a user's."""
    by_transformers(model, reentrant)
    return around_the_model(model, reentrant)


LISTS = {
    "BertForSequenceClassification": lambda model: [model.bert.encoder.layer],
    "RobertaForMaskedLM": lambda model: [model.roberta.encoder.layer],
    "BartForConditionalGeneration": lambda model: [model.model.encoder.layers, model.model.decoder.layers],
    "BartForCausalLM": lambda model: [model.model.decoder.layers],
}
WAYS = pytest.mark.parametrize(
    "way",
    [by_transformers, around_each_layer, around_the_model, around_the_model_and_inside],
    ids=lambda way: way.__name__,
)


def steps_of(model, loss, batches, forwards=1):
    """Train for a few steps of two micro-steps and return the gradients of each backward."""
    found = []
    for step in range(STEPS):
        for micro_step in range(2):
            set_step(model, step, micro_step)
            losses = [loss(model, batches[(step + forward) % len(batches)]) for forward in range(forwards)]
            gradients = gradients_of(model, *losses)
            found.append({name.replace("_checkpoint_wrapped_module.", ""): value for name, value in gradients.items()})
    return found


def assert_checkpointing_changes_nothing(head, way, reentrant, forwards=1):
    batches = [batch_for(head, seed) for seed in range(3)]
    plain, checkpointed = injected(head), injected(head)
    with recorded_runs(plain) as runs:
        expected = steps_of(plain, loss_of, batches, forwards)
    with recorded_runs(checkpointed) as runs_again:
        loss = way(checkpointed, reentrant)
        found = steps_of(checkpointed, loss, batches, forwards)
    for with_checkpoint, without in zip(found, expected, strict=True):
        assert_same_tensors(with_checkpoint, without, atol=1e-10)
    full = STEPS * 2 * forwards * 4
    assert all(0 < len(layers) < full for layers in runs.values()), "some layers must have been dropped, and some not"
    assert any(len(runs_again[stack]) > len(layers) for stack, layers in runs.items()), "nothing was recomputed"
    assert all(set(runs_again[stack]) == set(layers) for stack, layers in runs.items())
    dropped = [sum(value is None for value in gradients.values()) for gradients in expected]
    assert forwards > 1 or len(set(dropped)) > 1, (
        "dropped layers get no gradient, and the draws differ from step to step"
    )
    assert layerdrop_state(plain).state_dict() == layerdrop_state(checkpointed).state_dict()


@REENTRANT
@WAYS
def test_gradients_equal_those_without_checkpointing(head, way, reentrant):
    assert_checkpointing_changes_nothing(head, way, reentrant)


@REENTRANT
@WAYS
def test_two_forwards_before_one_backward_each_recompute_their_own_draw(head, way, reentrant):
    assert_checkpointing_changes_nothing(head, way, reentrant, forwards=2)


@REENTRANT
def test_one_checkpoint_around_two_forwards_recomputes_both_draws(head, reentrant):
    batches = [batch_for(head, seed) for seed in range(2)]

    def both(model, *_):
        return sum(loss_of(model, batch) for batch in batches)

    def checkpointed(model, *_):
        return checkpoint(lambda one: both(model) * one, torch.ones((), requires_grad=True), use_reentrant=reentrant)

    expected = steps_of(injected(head), both, batches)
    for found, wanted in zip(steps_of(injected(head), checkpointed, batches), expected, strict=True):
        assert_same_tensors(found, wanted, atol=1e-10)


def test_a_second_backward_through_one_checkpoint_recomputes_the_same_draw(head):
    batch = batch_for(head)
    model, plain = injected(head), injected(head)
    for _ in range(3):
        expected = gradients_of(plain, loss_of(plain, batch))
        loss = around_the_model(model, reentrant=False)(model, batch)
        model.zero_grad()
        loss.backward(retain_graph=True)
        model.zero_grad()
        loss.backward()
        assert_same_tensors({name: p.grad for name, p in model.named_parameters()}, expected, atol=1e-10)


@REENTRANT
@WAYS
def test_a_dropped_layer_is_not_run_by_a_recomputation_either(head, way, reentrant):
    model = injected(head)
    set_rates(model, (0, 1, 0, 1))
    with recorded_runs(model) as runs:
        loss = way(model, reentrant)
        loss(model, batch_for(head)).backward()
    assert {stack: set(layers) for stack, layers in runs.items()} == {stack: {0, 2} for stack in runs}
    assert all(layers.count(0) > 1 for layers in runs.values()), "nothing was recomputed"


@REENTRANT
@WAYS
def test_draws_between_a_forward_and_its_backward_do_not_disturb_it(head, way, reentrant):
    plain, model = injected(head), injected(head)
    batch, other = batch_for(head), batch_for(head, seed=5)
    expected = gradients_of(plain, loss_of(plain, batch))
    loss = way(model, reentrant)(model, batch)
    with torch.no_grad():
        output_of(model, other)
    output_of(model.eval(), other)
    model.train()
    loss_of(model, other)  # advances the count
    set_rates(model, 0.9)
    set_step(model, 40)
    found = {
        name.replace("_checkpoint_wrapped_module.", ""): value for name, value in gradients_of(model, loss).items()
    }
    assert_same_tensors(found, expected, atol=1e-10)


def test_checkpointing_at_rate_0_is_that_of_the_untouched_model(head):
    model, untouched, batch = injected(head, 0.0), build(head).train().double(), batch_for(head)
    for each in (model, untouched):
        each.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert_same_tensors(gradients_of(model, loss_of(model, batch)), gradients_of(untouched, loss_of(untouched, batch)))


class Recompute(torch.autograd.Function):
    """A home-made checkpoint that hf_layerdrop cannot know."""

    @staticmethod
    def forward(ctx, function, anchor):
        ctx.function = function
        with torch.no_grad():
            return function(anchor)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            anchor = torch.ones((), requires_grad=True)
            output = ctx.function(anchor)
        torch.autograd.backward(output, gradient)
        return None, anchor.grad


def recomputed_loss(model, batch):
    return Recompute.apply(lambda one: loss_of(model, batch) * one, torch.ones((), requires_grad=True))


def test_forwards_without_gradient_are_repeated_with_the_same_layers_and_count_once():
    head = "BertForSequenceClassification"
    model, reference = injected(head), injected(head)
    batches = [batch_for(head, seed) for seed in range(2)]
    patterns = set()
    for _ in range(STEPS):
        # the parts of one large batch, all of them run before any is repeated
        with recorded_runs(model) as runs:
            losses = [recomputed_loss(model, batch) for batch in batches]
            found = gradients_of(model, *losses)
        kept = tuple(sorted(set(runs["encoder"])))
        assert runs["encoder"] == list(kept) * 4
        set_rates(reference, [float(layer not in kept) for layer in range(4)])
        assert_same_tensors(found, gradients_of(reference, *(loss_of(reference, batch) for batch in batches)))
        patterns.add(kept)
        counter = layerdrop_state(model).state_dict()["counters"]["encoder"]
    assert len(patterns) > 1
    assert counter == [0, 0, STEPS]


def test_a_step_that_is_told_forgets_what_was_repeated_before():
    head = "BertForSequenceClassification"
    model, fresh = injected(head), injected(head)
    recomputed_loss(model, batch_for(head)).backward()
    for each in (model, fresh):
        set_step(each, 7)
        recomputed_loss(each, batch_for(head)).backward()
    counters = [layerdrop_state(each).state_dict()["counters"]["encoder"] for each in (model, fresh)]
    assert counters == [[7, 0, 1]] * 2


@pytest.mark.parametrize("first", [loss_of, None], ids=["after another loss", "never run before"])
def test_a_recomputation_whose_first_run_was_not_seen_is_an_error_and_not_another_draw(first):
    model, batch = injected("BertForSequenceClassification"), batch_for("BertForSequenceClassification")
    other = first(model, batch) if first else 0.0
    anchor = torch.ones((), requires_grad=True)
    with torch.no_grad():
        recomputed_loss(model, batch) if first else None
    anchor.register_hook(lambda gradient: loss_of(model, batch).detach() * gradient)
    with pytest.raises(LayerDropStateError, match=r"torch\.utils\.checkpoint"):
        (other + anchor * 2).backward()
