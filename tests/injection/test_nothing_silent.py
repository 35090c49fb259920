"""A step always has something to train, and where dropping is off though a rate is set, one warning says so."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from conftest import CACHE, DEPTH, batch_for, build, drawn, layers_of, loss_of, output_of, recorded_runs
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_step
from hf_layerdrop.injection.inject import injected_model

CONFIGS = {
    "bernoulli": LayerDropConfig(1.0),
    "bernoulli, often": LayerDropConfig(0.8, seed=3),
    "depth": LayerDropConfig(0.5, sampler="depth"),
    "mask": LayerDropConfig(1.0, execution="mask"),
    "attention": LayerDropConfig(1.0, structure=("layer", "attention", "ffn")),
}


def train_only(model: nn.Module, layers: tuple[int, ...]) -> None:
    """Freeze all but a few layers of each stack."""
    model.requires_grad_(False)
    for stack in layers_of(model).values():
        for layer in layers:
            stack[layer].requires_grad_(True)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_in_which_nothing_would_be_trained_keeps_one_layer(head: str, config: str) -> None:
    trained = {name: set() for name in layers_of(build(head))}
    for layers in ((3,), (0, 2)):
        model = build(head)
        train_only(model, layers)
        inject_layerdrop(model, CONFIGS[config])
        for step in range(8):
            set_step(model, step)
            with recorded_runs(model.train()) as runs:
                loss = loss_of(model, batch_for(head))
            model.zero_grad(set_to_none=True)
            loss.backward()
            assert any(weight.grad is not None for weight in model.parameters())
            for name, ran in runs.items():
                trained[name] |= {layer for layer in ran if layer in layers}
                if config == "bernoulli":  # of what is not trained nothing is kept, and of the rest one
                    assert len(ran) == 1
    assert all(layers == {0, 2, 3} for layers in trained.values())


def test_the_layer_that_is_kept_is_chosen_by_the_draw_alone(head: str) -> None:
    def kept() -> list[dict[str, list[int]]]:
        model = build(head)
        train_only(model, (0, 1, 3))
        inject_layerdrop(model, LayerDropConfig(1.0, seed=4))
        torch.manual_seed(99)
        found = []
        for step in range(12):
            set_step(model, step)
            found += drawn(model, batch_for(head))
        return found

    assert kept() == kept()
    assert {layer for runs in kept() for ran in runs.values() for layer in ran} == {0, 1, 3}


@pytest.mark.parametrize("config", [LayerDropConfig(0.5, seed=7), LayerDropConfig(0.5, sampler="depth")])
def test_the_draws_of_a_model_that_is_trained_outside_of_its_layers_stay_as_they_are(
    head: str, config: LayerDropConfig
) -> None:
    model = build(head)
    inject_layerdrop(model, config)
    for step in range(20):
        set_step(model, step)
        expected = {name: draw.draw() for name, draw in layerdrop_state(model).draws.items()}
        (runs,) = drawn(model, batch_for(head))
        assert runs == {name: [layer for layer, kept in enumerate(mask) if kept] for name, mask in expected.items()}


def test_the_rule_follows_weights_that_are_frozen_and_freed_between_steps() -> None:
    model, batch = build("BertModel"), batch_for("BertModel")
    inject_layerdrop(model, 1.0)
    seen = []
    for frozen in (False, True, False, True):
        model.requires_grad_(True)
        if frozen:
            train_only(model, (1,))
        seen.append(drawn(model, batch)[0]["encoder"])
    assert seen == [[], [1], [], [1]]


def test_a_head_of_ones_own_around_the_model_is_something_to_train() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = build("BertModel"), nn.Linear(16, 2)

        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(**batch).last_hidden_state)

    model = Classifier()
    train_only(model.backbone, (2,))
    inject_layerdrop(model.backbone, 1.0)
    with recorded_runs(model.train().backbone) as runs:
        model(**batch_for("BertModel")).sum().backward()
    assert runs["encoder"] == []


def test_lora_in_few_layers_trains_at_any_rate() -> None:
    peft = pytest.importorskip("peft")
    model = build("BertModel")
    settings = peft.LoraConfig(target_modules=["query", "value"], layers_to_transform=[1, 3], r=2)
    adapted = peft.get_peft_model(model, settings)
    inject_layerdrop(adapted, 0.9)
    ran: set[int] = set()
    for step in range(20):
        set_step(adapted, step)
        with recorded_runs(model) as runs:
            adapted.train()(**batch_for("BertModel")).last_hidden_state.square().sum().backward()
        assert {1, 3} & set(runs["encoder"])
        ran |= set(runs["encoder"])
    assert {1, 3} <= ran


# --- Warnings --------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "LayerDrop is off" in record.getMessage()]


def filled_cache(model: nn.Module, batch: dict[str, torch.Tensor]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.eval()(**batch, **{CACHE: cache}, use_cache=True)
    return cache


def test_a_filled_cache_in_a_training_forward_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = build("BertLMHeadModel")
    inject_layerdrop(model, 1.0)
    ids = batch_for("BertLMHeadModel")["input_ids"][1:]
    for _ in range(2):
        cache = filled_cache(model, {"input_ids": ids})
        with recorded_runs(model.train()) as runs:
            model(input_ids=ids, **{CACHE: cache})
        assert runs["encoder"] == list(range(DEPTH))
    (said,) = warnings(caplog)
    assert "a cache that holds tokens" in said
    assert "encoder" in said


def test_a_forward_past_the_call_is_warned_of_once(head: str, caplog: pytest.LogCaptureFixture) -> None:
    for config in (LayerDropConfig(1.0), LayerDropConfig(1.0, execution="mask")):
        caplog.clear()
        model = build(head)
        inject_layerdrop(model, config)
        owner = next(iter(_owners(model)))
        owner.train()
        hidden = torch.randn(2, 5, 16, requires_grad=True)
        named = {"inputs_embeds": hidden} if "Bart" in type(owner).__name__ else {"hidden_states": hidden}
        for _ in range(2):
            owner.forward(**named)
        (said,) = warnings(caplog)
        assert "forward()" in said


def _owners(model: nn.Module) -> list[nn.Module]:
    from hf_layerdrop.architectures.stacks import find_stacks

    return [stack.owner(model) for stack in find_stacks(model).values()]


class OwnLoop(nn.Module):
    """A model that generates in a loop of its own, without transformers' generate."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def generate(self, ids: torch.Tensor, steps: int = 2) -> torch.Tensor:
        for _ in range(steps):
            following = self.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
        return ids


def test_a_generate_of_ones_own_drops_nothing_in_train_mode_and_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = batch_for("BertLMHeadModel")["input_ids"][1:]
    model = build("BertLMHeadModel")
    expected = OwnLoop(model).eval().generate(ids)
    inject_layerdrop(model, 1.0)
    for _ in range(2):
        with recorded_runs(model) as runs:
            assert torch.equal(OwnLoop(model).train().generate(ids), expected)
        assert runs["encoder"] == list(range(DEPTH)) * 2
    assert len(warnings(caplog)) == 1


def test_ordinary_training_evaluation_and_generation_warn_of_nothing(
    head: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = batch_for(head)
    for config, checkpointing in product((0.0, 0.5, 1.0), (False, True)):
        model = build(head)
        inject_layerdrop(model, config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss_of(model.train(), batch).backward()
        with torch.no_grad():
            output_of(model, batch)
            output_of(model.eval(), batch)
        loss_of(model, batch).backward()  # a saliency map, in evaluation mode
        if model.can_generate():
            model.train().generate(batch["input_ids"][1:], max_new_tokens=2, pad_token_id=1)
    assert warnings(caplog) == []


def test_forwards_without_gradient_have_the_mask_of_the_next_one_with_and_a_step_tells_them_apart(head: str) -> None:
    model, batch = build(head).train(), batch_for(head)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=3))

    def runs() -> dict[str, list[Any]]:
        with recorded_runs(model) as found:
            output_of(model, batch)
        return found

    set_step(model, 0)
    with torch.no_grad():
        rehearsed = [runs(), runs()]
    assert rehearsed == [runs()] * 2
    seen = []
    for step in range(8):
        set_step(model, step)
        with torch.no_grad():
            seen.append(runs())
    assert any(one != seen[0] for one in seen)
    assert injected_model(model) is model
