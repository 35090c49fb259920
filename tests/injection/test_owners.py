"""One owner for each setting: rates, the count of steps over several trainings, the sampler, Trainer's callbacks."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, trainer

from conftest import DEPTH, assert_same_tensors, build, layers_of, recorded_runs
from hf_layerdrop import (
    LayerDropBertForSequenceClassification,
    LayerDropConfig,
    LayerDropScheduleCallback,
    inject_layerdrop,
    layerdrop_state,
    remove_layerdrop,
    set_rates,
    set_step,
    sub_network,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection import state as states
from hf_layerdrop.injection.rates import scale_rates
from hf_layerdrop.injection.step_callback import LayerDropStepCallback
from rows import arguments, examples

HEAD = "BertForSequenceClassification"


class Setter(TrainerCallback):
    """Set a rate at the end of a step, as a user's callback would, and note the rates of every step."""

    def __init__(self, at: int = 0, rate: float = 0.0) -> None:
        self.at, self.rate = at, rate
        self.rates: list[float] = []

    def on_step_end(
        self, args: object, state: Any, control: object, *, model: PreTrainedModel, **kwargs: object
    ) -> None:
        self.rates.append(layerdrop_state(model).rates["encoder"][-1])
        if state.global_step == self.at:
            set_rates(model, self.rate)


def injected(rate: object = 0.5) -> PreTrainedModel:
    model = build(HEAD)
    inject_layerdrop(model, rate)
    return model


def trainer_for(model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    settings = {"max_steps": 8, "per_device_train_batch_size": 4, "save_strategy": "no", "seed": 5, **changes}
    return Trainer(model, arguments(folder, **settings), train_dataset=examples(24), callbacks=list(callbacks))


# --- Rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (("constant", {}), [0.5] * 4 + [0.2] * 4),
        (("linear", {}), [0.5 * step / 8 for step in range(4)] + [0.2 * step / 8 for step in range(4, 8)]),
    ],
)
def test_a_schedule_scales_the_rates_that_were_set_and_the_config_says_them(
    schedule: tuple[str, dict], expected: list[float], tmp_path: Path
) -> None:
    model, setter = injected(), Setter(at=4, rate=0.2)
    trainer_for(model, tmp_path, LayerDropScheduleCallback(schedule[0], **schedule[1]), setter).train()
    assert setter.rates == pytest.approx(expected)
    assert model.config.hf_layerdrop["rates"] == {"encoder": [0.2] * DEPTH}
    scale_rates(model, 1.0)
    assert layerdrop_state(model).rates == model.config.hf_layerdrop["rates"]


NUMBERS = {"python": float, "numpy": np.float64, "half": np.float16, "torch": torch.tensor, "array": np.array}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("shape", ["uniform", "linear", "exponential"])
def test_one_number_of_any_kind_is_spread_by_the_shape(shape: str, kind: str) -> None:
    model, expected = injected(LayerDropConfig(0.5, shape=shape)), injected(LayerDropConfig(0.25, shape=shape))
    for rates in (NUMBERS[kind](0.25), {"encoder": NUMBERS[kind](0.25)}):
        set_rates(model, 0.5)
        set_rates(model, rates)
        assert layerdrop_state(model).rates == layerdrop_state(expected).rates
    assert layerdrop_state(injected(LayerDropConfig(NUMBERS[kind](0.25), shape=shape))).rates == rates_of(expected)
    json.dumps(model.config.hf_layerdrop)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_one_number_a_layer_of_any_kind_is_taken_as_it_is(kind: Any) -> None:
    model = injected(LayerDropConfig(0.5, shape="linear"))
    set_rates(model, kind([0.0, 0.25, 0.5, 0.75]))
    assert layerdrop_state(model).rates == {"encoder": [0.0, 0.25, 0.5, 0.75]}
    with pytest.raises(LayerDropConfigError, match="from 0"):
        set_rates(model, kind([0.0, 0.25, 0.5, 1.75]))


def rates_of(model: PreTrainedModel) -> dict[str, list[float]]:
    return layerdrop_state(model).rates


@pytest.mark.parametrize("schedule", [(), ("linear",)], ids=["no schedule", "a schedule"])
def test_rates_that_were_set_hold_after_a_resume(schedule: tuple[str, ...], tmp_path: Path) -> None:
    callbacks = [LayerDropScheduleCallback(name) for name in schedule]
    settings = {"save_strategy": "steps", "save_steps": 4}
    whole, cut = injected(), injected()
    trainer_for(whole, tmp_path / "whole", *callbacks, Setter(at=2, rate=0.9), **settings).train()
    trainer_for(cut, tmp_path / "cut", *callbacks, **settings).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4")
    )
    assert_same_tensors(dict(cut.named_parameters()), dict(whole.named_parameters()))
    assert cut.config.hf_layerdrop["rates"] == {"encoder": [0.9] * DEPTH}


def test_a_saved_state_holds_what_a_schedule_scales() -> None:
    model, other = injected(), injected(0.1)
    set_rates(model, 0.4)
    scale_rates(model, 0.5)
    layerdrop_state(other).load_state_dict(json.loads(json.dumps(layerdrop_state(model).state_dict())))
    assert layerdrop_state(other).rates == {"encoder": [0.2] * DEPTH}
    scale_rates(other, 1.0)
    assert layerdrop_state(other).rates == {"encoder": [0.4] * DEPTH}


# --- Steps over several trainings ------------------------------------------------------------------


def test_a_saved_state_of_learned_rates_holds_their_target_and_what_a_schedule_scales_it_by() -> None:
    model, other = injected(LayerDropConfig(0.4, sampler="learned")), injected(LayerDropConfig(0.4, sampler="learned"))
    set_rates(model, 0.2)
    scale_rates(model, 0.5)
    state = json.loads(json.dumps(layerdrop_state(model).state_dict()))
    layerdrop_state(other).load_state_dict(state)
    for one in (model, other):
        assert np.mean(layerdrop_state(one).rates["encoder"]) == pytest.approx(0.1)
        assert np.mean(layerdrop_state(one).rates_to_save()["encoder"]) == pytest.approx(0.2)


def test_of_two_callbacks_one_acts(tmp_path: Path) -> None:
    ended = []
    for number, more in enumerate(([], [LayerDropStepCallback()])):
        trained = trainer_for(injected(), tmp_path / str(number), *more, gradient_accumulation_steps=2, logging_steps=1)
        trained.train()
        used = [record["layerdrop_layers_used"] for record in trained.state.log_history if "loss" in record]
        ended.append((trained.model.state_dict(), used))
    assert_same_tensors(ended[0][0], ended[1][0])
    assert ended[0][1] == ended[1][1]
    assert len(set(ended[0][1])) > 1


def test_each_further_training_draws_other_layers(tmp_path: Path) -> None:
    model, rounds = injected(), []
    for turn in range(3):
        with recorded_runs(model) as runs:
            trainer_for(model, tmp_path / str(turn), max_steps=3).train()
        rounds.append(runs["encoder"])
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    one = injected()
    with recorded_runs(one) as runs:
        trainer_for(one, tmp_path / "one", max_steps=9).train()
    assert runs["encoder"] == [layer for turn in rounds for layer in turn]


def test_the_same_trainer_goes_on_counting_too(tmp_path: Path) -> None:
    model = injected()
    again, steps = trainer_for(model, tmp_path, max_steps=3), []
    for _ in range(2):
        again.train()
        steps.append(layerdrop_state(model).draws["encoder"].step)
    assert steps == [2, 5]


def test_a_later_round_that_is_resumed_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = injected()
    trainer_for(whole, tmp_path / "first", max_steps=3).train()
    begun = copy.deepcopy(whole.state_dict())
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer_for(whole, tmp_path / "second", **settings).train()
    resumed = injected()
    resumed.load_state_dict(begun)
    trainer_for(resumed, tmp_path / "again", **settings).train(
        resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-3")
    )
    assert_same_tensors(dict(resumed.named_parameters()), dict(whole.named_parameters()))


# --- Seeds and the depth sampler -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63])
def test_a_seed_out_of_range_is_refused_at_once_with_the_range(seed: int) -> None:
    with pytest.raises(LayerDropConfigError, match=rf"{seed}; it must be a whole number from 0 to 2\*\*63 - 1"):
        LayerDropConfig(0.2, seed=seed)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_any_seed_that_is_taken_is_saved_and_read_again(seed: int, tmp_path: Path) -> None:
    model = LayerDropBertForSequenceClassification(build(HEAD).config, layerdrop=LayerDropConfig(0.2, seed=seed))
    model.save_pretrained(tmp_path)
    again = LayerDropBertForSequenceClassification.from_pretrained(tmp_path)
    assert layerdrop_state(again).seed == seed


def depth_draws(model: PreTrainedModel, steps: int) -> list[tuple[bool, ...]]:
    found = []
    for step in range(steps):
        set_step(model, step)
        found.append(layerdrop_state(model).draws["encoder"].draw())
    return found


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5])
def test_the_depth_sampler_drops_the_rate_that_was_asked_for_and_logs_it(rate: float) -> None:
    model = build(HEAD, num_hidden_layers=6)
    inject_layerdrop(model, LayerDropConfig(rate, sampler="depth"))
    draw = layerdrop_state(model).draws["encoder"]
    assert draw.mean_kept == pytest.approx(6 * (1 - rate))
    assert 1 - np.mean(depth_draws(model, 4000)) == pytest.approx(rate, abs=0.015)
    assert layerdrop_state(model).take_log()["layerdrop_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_depth_sampler_holds_its_rate_over_the_layers_that_are_not_protected(rate: float) -> None:
    model = build(HEAD, num_hidden_layers=6)
    inject_layerdrop(model, LayerDropConfig(rate, sampler="depth", never_drop=(1, -1)))
    assert layerdrop_state(model).draws["encoder"].mean_kept == pytest.approx(6 - 4 * rate)
    assert layerdrop_state(model).take_log()["layerdrop_rate"] == pytest.approx(rate * 4 / 6)
    assert all(mask[1] and mask[5] for mask in depth_draws(model, 100))


def test_a_rate_that_the_depth_sampler_cannot_reach_is_refused() -> None:
    with pytest.raises(LayerDropConfigError, match="can drop at most 0 layers"):
        inject_layerdrop(build(HEAD), LayerDropConfig(0.5, sampler="depth", never_drop=(0, 1, 2)))


def begun_by_version_1(folder: Path, **settings: Any) -> PreTrainedModel:
    """Train with what the first version of the package drew, and make its checkpoints those that it wrote."""
    model = injected(LayerDropConfig(0.3, sampler="depth"))
    layerdrop_state(model).use_sampler_version(1)
    trainer_for(model, folder, **settings).train()
    for file in folder.glob("checkpoint-*/*.json"):
        entries = json.loads(file.read_text())
        if file.name == "config.json":
            assert entries["hf_layerdrop"].pop("sampler_version") == 1
        if file.name == "trainer_state.json":
            attributes = entries["stateful_callbacks"]["LayerDropStepCallback"]["attributes"]
            assert attributes.pop("sampler_version") == 1
            del attributes["first_step"]
        file.write_text(json.dumps(entries))
    return model


def test_a_checkpoint_of_an_old_sampler_resumes_with_the_draws_it_began_with(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 4}
    whole = begun_by_version_1(tmp_path / "whole", **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    newest = injected(LayerDropConfig(0.3, sampler="depth"))
    assert depth_draws(newest, 8) != depth_draws(whole, 8)
    loaded = LayerDropBertForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    for cut in (newest, loaded):
        trainer_for(cut, tmp_path / "cut", **settings).train(resume_from_checkpoint=str(checkpoint))
        assert_same_tensors(dict(cut.named_parameters()), dict(whole.named_parameters()))
        assert cut.config.hf_layerdrop["sampler_version"] == 1
        assert depth_draws(cut, 8) == depth_draws(whole, 8)


def test_a_sampler_of_a_later_version_is_refused() -> None:
    model = injected(LayerDropConfig(0.3, sampler="depth"))
    with pytest.raises(LayerDropStateError, match="update it"):
        layerdrop_state(model).use_sampler_version(99)
    assert model.config.hf_layerdrop["sampler_version"] == 3


# --- Trainer's callbacks ---------------------------------------------------------------------------


class Reporter(TrainerCallback):
    """Note what a callback is told that reports, as those for TensorBoard do."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def on_log(self, args: object, state: object, control: object, *, logs: dict[str, float], **kwargs: object) -> None:
        self.records.append(dict(logs))


def test_reporters_are_told_the_layers_used_also_where_callbacks_are_restored(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 2}
    whole, resumed = Reporter(), Reporter()
    trainer_for(injected(), tmp_path / "run", whole, **settings).train()
    settings |= {"restore_callback_states_from_checkpoint": True}
    trainer_for(injected(), tmp_path / "again", resumed, **settings).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")
    )
    used = [record["layerdrop_layers_used"] for record in resumed.records if "loss" in record]
    assert used == [record["layerdrop_layers_used"] for record in whole.records if "loss" in record][2:]
    assert len(used) == 2


def test_training_within_a_block_leaves_the_rates_and_the_seed_as_they_were(tmp_path: Path) -> None:
    model = injected()
    before = copy.deepcopy(model.config.hf_layerdrop), layerdrop_state(model).state_dict()
    with sub_network(model, [0, 3]):
        trainer_for(model, tmp_path, max_steps=2, save_strategy="steps", save_steps=2, logging_steps=1).train()
    assert (model.config.hf_layerdrop, layerdrop_state(model).state_dict()) == before
    saved = LayerDropBertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert layerdrop_state(saved).rates == {"encoder": [0.0, 0.0]}


@pytest.fixture
def nothing_lives(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Have no injected model in the process, whatever other tests still hold."""
    plain = [kind for kind in trainer.DEFAULT_CALLBACKS if kind is not LayerDropStepCallback]
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", list(plain))
    monkeypatch.setattr(states, "_living", {})
    return plain


ENDS = {"removed": remove_layerdrop, "gone": lambda model: None}


@pytest.mark.parametrize("end", ENDS)
def test_the_last_injected_model_takes_the_callback_with_it(end: str, nothing_lives: list[type]) -> None:
    models = [injected(), injected()]
    models += [copy.deepcopy(models[0]), pickle.loads(pickle.dumps(models[1]))]
    while models:
        assert LayerDropStepCallback in trainer.DEFAULT_CALLBACKS
        ENDS[end](models.pop())
        gc.collect()
    assert nothing_lives == trainer.DEFAULT_CALLBACKS


def test_a_model_from_a_pickle_is_followed_by_trainer(nothing_lives: list[type], tmp_path: Path) -> None:
    written = pickle.dumps(injected())
    gc.collect()
    assert nothing_lives == trainer.DEFAULT_CALLBACKS
    model = pickle.loads(written)
    trainer_for(model, tmp_path, max_steps=2).train()
    assert layerdrop_state(model).draws["encoder"].step == 1


def test_a_second_injection_leaves_one_state(nothing_lives: list[type]) -> None:
    model = injected()
    inject_layerdrop(model, 0.2)
    assert len(states._living) == 1
    assert list(layers_of(model)) == ["encoder"]
    remove_layerdrop(model)
    assert nothing_lives == trainer.DEFAULT_CALLBACKS
