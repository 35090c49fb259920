"""Learned drop rates: the mean is held, what is not needed is dropped most, and nothing else changes."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import random
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from conftest import DEPTH, VOCABULARY, batch_for, build, loss_of, recorded_runs
from hf_layerdrop.errors import KeepLayersError, LayerDropConfigError, LayerDropStateError, OutputExistsError
from hf_layerdrop.injection.inject import inject_layerdrop, layerdrop_state, remove_layerdrop, set_step
from hf_layerdrop.injection.ranks.ddp import leave_ranks
from hf_layerdrop.injection.rates import set_rates
from hf_layerdrop.models.auto import AutoLayerDropModelForSequenceClassification, load_checkpoint
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.results.plot import draw_rates_plot
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.learned.credits import Credits
from hf_layerdrop.samplers.learned.learner import RateLearner
from hf_layerdrop.samplers.learned.rates_from_shares import HIGHEST_RATE, rates_from_shares
from hf_layerdrop.search.learned_rates import learn_rates, learned_keep_layers, write_learned_selection
from hf_layerdrop.training.callbacks import LayerDropScheduleCallback
from ranks import run_on_two_ranks
from rows import arguments

HEAD = "BertForSequenceClassification"
TARGET = 0.25
LEARNED = LayerDropConfig(TARGET, sampler="learned", seed=5)


class Spy(TrainerCallback):
    """Note the rates with which every step was drawn."""

    def __init__(self) -> None:
        self.rates: list[dict[str, list[float]]] = []

    def on_step_end(self, args, state, control, *, model, **kwargs) -> None:
        self.rates.append(layerdrop_state(model).rates)

    on_substep_end = on_step_end


def regressor(seed: int = 0) -> PreTrainedModel:
    return build(HEAD, seed, num_labels=8, problem_type="regression")


def rows_of(model: PreTrainedModel, seed: int = 0, count: int = 128) -> list[dict[str, torch.Tensor]]:
    """Return inputs with what the model itself says of them, so that no layer can be left out without a loss."""
    ids = torch.randint(5, VOCABULARY, (count, 8), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = model.eval()(input_ids=ids).logits
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def plant_identity(model: PreTrainedModel, layer: int) -> None:
    """Make a layer useless: its attention and its feed-forward part add nothing, and its norms find nothing to do."""
    planted = model.bert.encoder.layer[layer]
    with torch.no_grad():
        for output in (planted.attention.output, planted.output):
            output.dense.weight.zero_()
            output.dense.bias.zero_()
            output.LayerNorm.weight.fill_(1)
            output.LayerNorm.bias.zero_()
    planted.requires_grad_(False)


def trainer_for(model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback, **changes: object) -> Trainer:
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 2,
        "seed": 3,
        **changes,
    }
    rows = rows_of(model)
    inject_layerdrop(model, LEARNED)
    trainer = Trainer(
        model, arguments(folder, **settings), train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def learn_by_hand(model: PreTrainedModel, steps: int = 60) -> None:
    """Show a raw loop's losses that depend on layer 1 alone, so that layer 1 is the one to keep."""
    batch = batch_for(HEAD)
    for step in range(steps):
        set_step(model, step)
        with recorded_runs(model) as runs:
            model.train()(**batch)
        learn_rates(model, torch.tensor(1.0 if 1 in runs["encoder"] else 3.0))


# The arithmetic.


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=48),
    mean=st.floats(0, HIGHEST_RATE),
    zeros=st.integers(0, 3),
)
@example(shares=[1.0, 1.0, 0.5], mean=HIGHEST_RATE, zeros=1)  # all capped, where rounding asks for a little more
def test_rates_have_the_mean_the_cap_and_the_order_of_their_shares(shares, mean, zeros):
    shares, total = [*shares, *[0.0] * zeros], mean * len(shares)
    rates = rates_from_shares(shares, total)
    assert sum(rates) == pytest.approx(total, abs=1e-9)
    assert all(0 <= rate <= HIGHEST_RATE for rate in rates)
    assert all(rate == 0 for rate, share in zip(rates, shares, strict=True) if share == 0)
    for (share, rate), (other_share, other) in combinations(zip(shares, rates, strict=True), 2):
        assert share <= other_share or rate >= other
        if max(rate, other) < HIGHEST_RATE and min(share, other_share) > 0:
            assert rate * other_share == pytest.approx(other * share)


def test_credits_find_what_each_drop_costs_whatever_the_other_drops_and_the_noise_do():
    random_numbers, rates, costs = random.Random(0), [0.5, 0.1, 0.3, 0.2], [0.0, 1.0, -0.5, 2.0]
    credits, tail = Credits(4), []
    for _ in range(6000):
        drops = [random_numbers.random() < rate for rate in rates]
        loss = 7 + sum(cost for cost, drop in zip(costs, drops, strict=True) if drop) + random_numbers.gauss(0, 0.5)
        deviations = [drop - rate for drop, rate in zip(drops, rates, strict=True)]
        credits.update(loss, deviations, [rate * (1 - rate) for rate in rates])
        tail.append(list(credits.values))
    means = [sum(column) / 4000 for column in zip(*tail[2000:], strict=True)]
    assert means == pytest.approx(costs, abs=0.1)


def test_a_loss_that_is_no_number_teaches_nothing():
    credits = Credits(2)
    for loss in (1.0, 2.0, math.nan, math.inf):
        before = credits.state_dict()
        credits.update(loss, [0.5, -0.5], [0.25, 0.25])
        assert (credits.state_dict() == before) == (not math.isfinite(loss))


# What the learner does to a training.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_layer_that_does_nothing_gets_the_highest_rate(tmp_path, seed):
    model, planted = regressor(seed), (seed + 1) % DEPTH
    plant_identity(model, planted)
    trainer_for(model, tmp_path, max_steps=150, seed=seed).train()
    rates = layerdrop_state(model).rates["encoder"]
    assert max(range(DEPTH), key=rates.__getitem__) == planted
    assert rates[planted] > 2 * TARGET  # by far, not by the noise of a tie
    assert learned_keep_layers(model, 3) == {"encoder": tuple(layer for layer in range(DEPTH) if layer != planted)}


def test_the_losses_alone_find_the_layer_that_is_needed():
    model = build(HEAD)
    inject_layerdrop(model, LEARNED)
    learn_by_hand(model, steps=150)
    rates = layerdrop_state(model).rates["encoder"]
    assert min(range(DEPTH), key=rates.__getitem__) == 1
    assert rates[1] < TARGET / 2
    assert 1 in learned_keep_layers(model, 1)["encoder"]


def test_the_mean_is_the_target_at_every_step_and_no_rate_passes_the_cap(tmp_path):
    spy, model = Spy(), regressor()
    plant_identity(model, 2)
    trainer_for(
        model, tmp_path, spy, max_steps=60, gradient_accumulation_steps=2, per_device_train_batch_size=8
    ).train()
    assert len(spy.rates) == 120
    for rates in spy.rates:
        assert abs(sum(rates["encoder"]) / DEPTH - TARGET) < 1e-6
        assert all(0 < rate <= HIGHEST_RATE for rate in rates["encoder"])
    assert spy.rates[0]["encoder"] == [TARGET] * DEPTH
    assert spy.rates[1:-1:2] == spy.rates[2::2]  # learned when a step ends, not between its micro-steps
    assert max(spy.rates[-1]["encoder"]) > 0.5


def test_each_stack_holds_its_own_target_and_protected_layers_are_never_dropped():
    model = build("BartForConditionalGeneration")
    config = LayerDropConfig(
        {"encoder": 0.25, "decoder": 0.5}, sampler="learned", never_drop={"decoder": (0, -1)}, seed=1
    )
    with pytest.raises(LayerDropConfigError, match=r"rate is 0\.5.*2 of 4 layers in never_drop.*at most 0\.45"):
        inject_layerdrop(model, config)
    config = LayerDropConfig(
        {"encoder": 0.25, "decoder": 0.4}, sampler="learned", never_drop={"decoder": (0, -1)}, seed=1
    )
    inject_layerdrop(model, config)
    batch = batch_for("BartForConditionalGeneration")
    for step in range(40):
        set_step(model, step)
        learn_rates(model, model.train()(**batch, labels=batch["input_ids"]).loss)
        rates = layerdrop_state(model).rates
        assert sum(rates["encoder"]) / DEPTH == pytest.approx(0.25, abs=1e-6)
        assert sum(rates["decoder"]) / DEPTH == pytest.approx(0.4, abs=1e-6)
        assert rates["decoder"][0] == rates["decoder"][3] == 0
    assert len(set(rates["encoder"])) == DEPTH
    kept = learned_keep_layers(model, {"decoder": 2})
    assert kept == {"encoder": (0, 1, 2, 3), "decoder": (0, 3)}
    assert {stack: len(layers) for stack, layers in learned_keep_layers(model, 2).items()} == {
        "encoder": 2,
        "decoder": 2,
    }
    with pytest.raises(KeepLayersError, match="stack 'encoder' has 4 layers"):
        learned_keep_layers(model, 5)


def test_the_rates_of_a_step_are_frozen_and_use_what_was_measured_a_step_before():
    learner = RateLearner({"encoder": [0.5, 0.5]}, {"encoder": frozenset()})
    seen = []
    for loss, mask in [(1.0, (True, False)), (5.0, (False, True)), (1.0, (True, False)), (1.0, (True, False))]:
        rates = learner.rates("encoder")
        learner.note_draw("encoder", rates, mask)
        learner.note_loss(torch.tensor(loss))
        assert learner.rates("encoder") == rates
        learner.end_step()
        seen.append(learner.rates("encoder"))
    assert seen[0] == seen[1] == [0.5, 0.5]  # the second loss is the first surprise, and is read a step later
    assert seen[2][0] < 0.5 < seen[2][1]  # dropping layer 0 was expensive


def test_only_layers_that_run_are_measured_and_they_are_measured_right():
    model, batch = build(HEAD), batch_for(HEAD)
    inject_layerdrop(model, LEARNED)
    learner = layerdrop_state(model).learner
    with recorded_runs(model) as runs:
        states = model.train()(**batch, output_hidden_states=True).hidden_states
    assert 0 < len(runs["encoder"]) < DEPTH
    norms = learner._measurements._norms
    assert sorted(norms) == runs["encoder"]
    for layer, found in norms.items():
        before, after = states[layer], states[layer + 1]
        expected = torch.stack([before.norm(), after.norm(), (after - before).norm()])
        assert torch.allclose(found, expected)
        assert not found.requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_evaluations_change_nothing_of_what_is_learned(tmp_path, reentrant):
    plain, checkpointed = regressor(), regressor()
    trainer_for(plain, tmp_path, max_steps=12).train()
    settings = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer_for(checkpointed, tmp_path, max_steps=12, eval_strategy="steps", eval_steps=2, **settings).train()
    assert layerdrop_state(plain).rates["encoder"] != [TARGET] * DEPTH
    assert layerdrop_state(checkpointed).rates["encoder"] == pytest.approx(
        layerdrop_state(plain).rates["encoder"], abs=1e-4
    )


def test_the_loss_is_the_one_that_is_trained_on_whatever_computes_it(tmp_path):
    model = build(HEAD)
    trainer = trainer_for(model, tmp_path, max_steps=12)
    trainer.compute_loss_func = lambda outputs, labels, **kwargs: 100 + outputs.logits.mean()
    trainer.train()
    assert layerdrop_state(model).learner.state_dict()["credits"]["baseline"] == pytest.approx(100, abs=3)


def test_a_schedule_scales_the_target_and_the_whole_target_is_saved(tmp_path):
    spy, model = Spy(), regressor()
    trainer_for(model, tmp_path, LayerDropScheduleCallback("linear"), spy, max_steps=20).train()
    assert spy.rates[0]["encoder"] == [0.0] * DEPTH
    for step, rates in enumerate(spy.rates):
        # The spy comes after the step's learning, which keeps the factor of the step.
        assert sum(rates["encoder"]) / DEPTH == pytest.approx(TARGET * step / 20, abs=1e-6)
    assert sum(model.config.hf_layerdrop["learned_rates"]["encoder"]) / DEPTH == pytest.approx(TARGET)


def test_a_new_target_is_held_from_then_on():
    model = build(HEAD)
    inject_layerdrop(model, LEARNED)
    learn_by_hand(model)
    before = layerdrop_state(model).rates["encoder"]
    set_rates(model, 0.5)
    after = layerdrop_state(model).rates["encoder"]
    assert sum(after) / DEPTH == pytest.approx(0.5, abs=1e-6)
    assert sorted(range(DEPTH), key=before.__getitem__) == sorted(range(DEPTH), key=after.__getitem__)


def test_two_ranks_learn_the_same_rates_from_the_mean_of_their_losses(tmp_path):
    run_on_two_ranks(Path(__file__), str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["losses"] != second["losses"]
    assert first["state"] == second["state"]
    assert first["state"]["rates"]["encoder"] != [TARGET] * DEPTH
    mean = [sum(pair) / 2 for pair in zip(first["losses"], second["losses"], strict=True)]
    assert first["state"]["learned"]["pending"]["values"][0] == pytest.approx(mean[-1])


def train_as_one_of_two_ranks(folder: Path) -> None:
    """Train a few steps by Trainer, and write down what this rank saw and learned."""
    losses: list[float] = []

    class Losses(Trainer):
        def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.item())
            return loss

    model = regressor()
    inject_layerdrop(model, LEARNED)
    settings = arguments(folder, max_steps=12, per_device_train_batch_size=8, save_strategy="no", learning_rate=1e-3)
    Losses(model, settings, train_dataset=rows_of(regressor())).train()
    found = {"losses": losses, "state": layerdrop_state(model).state_dict()}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


# What it leaves alone.


def test_nothing_of_it_is_in_the_state_dict_the_parameters_or_the_optimizer(tmp_path):
    model = regressor()
    names, count = list(model.state_dict()), len(list(model.parameters()))
    modules = len(list(model.modules()))
    trainer = trainer_for(model, tmp_path)
    trainer.train()
    assert layerdrop_state(model).rates["encoder"] != [TARGET] * DEPTH
    assert list(model.state_dict()) == names
    assert len(list(model.parameters())) == count
    assert len(list(model.modules())) == modules
    given = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert given <= {id(weight) for weight in model.parameters()}


def test_no_global_random_numbers_are_read_or_advanced():
    model, batch = build(HEAD), batch_for(HEAD)
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    inject_layerdrop(model, LEARNED)
    for step in range(5):
        set_step(model, step)
        learn_rates(model, loss_of(model.train(), batch))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert layerdrop_state(model).rates["encoder"] != [TARGET] * DEPTH


def test_removing_it_leaves_no_trace():
    model, batch = build(HEAD), batch_for(HEAD)
    expected = model.train()(**batch).logits
    inject_layerdrop(model, LEARNED)
    learn_by_hand(model, steps=5)
    remove_layerdrop(model)
    assert torch.equal(model.train()(**batch).logits, expected)
    assert not hasattr(model.config, "hf_layerdrop")


# What is saved.


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    settings = {"max_steps": 24, "save_strategy": "steps", "save_steps": 12, "gradient_accumulation_steps": 2}
    whole, cut, fresh = regressor(), regressor(), regressor()
    trainer_for(whole, tmp_path / "whole", **settings).train()
    spy = Spy()
    checkpoint = tmp_path / "whole" / "checkpoint-12"
    trainer_for(cut, tmp_path / "cut", spy, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert spy.rates[0]["encoder"] != [TARGET] * DEPTH
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    assert layerdrop_state(whole).state_dict() == layerdrop_state(cut).state_dict()
    state_file = checkpoint / "trainer_state.json"
    state = json.loads(state_file.read_text())
    del state["stateful_callbacks"]["LayerDropStepCallback"]
    state_file.write_text(json.dumps(state))
    trainer_for(fresh, tmp_path / "fresh", **settings).train(resume_from_checkpoint=str(checkpoint))
    assert layerdrop_state(whole).rates != layerdrop_state(fresh).rates  # without what was saved it ends elsewhere


def test_a_raw_loop_saves_and_restores_it_with_the_rest_of_the_state():
    whole, cut = build(HEAD), build(HEAD)
    for model in (whole, cut):
        inject_layerdrop(model, LEARNED)
    learn_by_hand(whole, steps=20)
    saved = json.loads(json.dumps(layerdrop_state(whole).state_dict()))
    layerdrop_state(cut).load_state_dict(saved)
    assert layerdrop_state(cut).rates == layerdrop_state(whole).rates != {"encoder": [TARGET] * DEPTH}
    for model in (whole, cut):
        learn_by_hand(model, steps=10)
    assert layerdrop_state(cut).state_dict() == layerdrop_state(whole).state_dict()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.load(io.BytesIO(pickle.dumps(model)))])
def test_a_copy_learns_on_its_own(duplicate):
    model = build(HEAD)
    inject_layerdrop(model, LEARNED)
    learn_by_hand(model, steps=10)
    other = duplicate(model)
    before = layerdrop_state(model).state_dict()
    learn_by_hand(other, steps=10)
    assert layerdrop_state(model).state_dict() == before != layerdrop_state(other).state_dict()
    learn_by_hand(model, steps=10)
    assert layerdrop_state(model).state_dict() == layerdrop_state(other).state_dict()


def test_learned_rates_are_logged_saved_read_again_and_choose_the_layers(tmp_path):
    model = regressor()
    plant_identity(model, 2)
    trainer = trainer_for(model, tmp_path / "run", max_steps=40)
    trainer.train()
    rates = layerdrop_state(model).rates["encoder"]
    last = [entry for entry in trainer.state.log_history if "layerdrop_rate" in entry][-1]
    assert [last[f"layerdrop_encoder_rate_{layer}"] for layer in range(DEPTH)] == rates
    assert last["layerdrop_rate"] == pytest.approx(TARGET)
    trainer.save_model(tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.hf_layerdrop["learned_rates"] == config.hf_layerdrop["rates"] == {"encoder": rates}
    kept = learned_keep_layers(config, 2)
    assert kept == learned_keep_layers(model, 2)
    assert 2 not in kept["encoder"]
    selection = write_learned_selection(config, 2, tmp_path / "selection.json")
    shallow = load_checkpoint(str(tmp_path / "out"), keep_layers=str(selection))
    assert shallow.config.num_hidden_layers == 2
    assert tuple(shallow.config.hf_layerdrop["keep_layers"]["encoder"]) == kept["encoder"]
    prune_layers(model, kept, strategy="learned")
    again = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert layerdrop_state(again).rates["encoder"] == pytest.approx(rates, abs=1e-9)
    assert layerdrop_state(again).learner is not None
    with pytest.raises(LayerDropConfigError, match="was cut to"):
        learned_keep_layers(model, 1)
    with pytest.raises(OutputExistsError, match=r"selection\.json"):
        write_learned_selection(config, 2, selection)


def test_the_picture_shows_one_bar_a_layer(tmp_path):
    paths = draw_rates_plot(
        {"encoder": [0.1, 0.9, 0.2], "decoder": [0.5, 0.3]}, tmp_path / "plots" / "rates", target=0.4
    )
    assert [path.name for path in paths] == ["rates.png", "rates.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
    text = paths[1].read_text()
    assert all(word in text for word in ("encoder layer", "decoder layer", "mean 0.4", "drop rate"))
    other = draw_rates_plot({"encoder": [0.9, 0.1, 0.2], "decoder": [0.5, 0.3]}, tmp_path / "other", target=0.4)
    assert other[1].read_text() != text
    with pytest.raises(LayerDropConfigError, match="no rates"):
        draw_rates_plot({}, tmp_path / "none")


# What is refused.


@pytest.mark.parametrize(
    ("rate", "settings", "said"),
    [
        (0.95, {}, ["0.95", "learned", "0.9"]),
        ([0.2, 0.95], {}, ["0.95", "0.9"]),
        (0.2, {"shape": "linear"}, ["linear", "learned"]),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_sentence(rate, settings, said):
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropConfig(rate, sampler="learned", **settings)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert "\n" not in str(error.value)


def test_a_raw_loop_that_shows_no_loss_is_told_so():
    model, batch = build(HEAD), batch_for(HEAD)
    inject_layerdrop(model, LEARNED)
    set_step(model, 0)
    model.train()(**batch)
    with pytest.raises(LayerDropStateError, match="learn_rates"):
        set_step(model, 1)


def test_losses_and_layers_without_learned_rates_are_refused():
    model = build(HEAD)
    with pytest.raises(LayerDropStateError, match="inject_layerdrop first"):
        learn_rates(model, torch.tensor(1.0))
    inject_layerdrop(model, 0.2)
    with pytest.raises(LayerDropStateError, match="'bernoulli'"):
        learn_rates(model, torch.tensor(1.0))
    with pytest.raises(LayerDropConfigError, match="no learned drop rates"):
        learned_keep_layers(model, 2)
    inject_layerdrop(model, LEARNED)
    with pytest.raises(LayerDropConfigError, match="Nothing was learned"):
        learned_keep_layers(model, 2)


def test_a_state_that_does_not_fit_is_refused():
    model, protected, plain = build(HEAD), build(HEAD), build(HEAD)
    inject_layerdrop(model, LEARNED)
    inject_layerdrop(protected, LayerDropConfig(TARGET, sampler="learned", never_drop=(0,)))
    inject_layerdrop(plain, TARGET)
    with pytest.raises(LayerDropConfigError, match="same never_drop"):
        layerdrop_state(model).load_state_dict(layerdrop_state(protected).state_dict())
    with pytest.raises(LayerDropConfigError, match="no learned rates"):
        layerdrop_state(model).load_state_dict(layerdrop_state(plain).state_dict())
    broken = layerdrop_state(model).state_dict()
    del broken["learned"]["credits"]
    with pytest.raises(LayerDropConfigError, match="cannot be read"):
        layerdrop_state(model).load_state_dict(broken)


def test_a_model_without_one_layer_to_drop_learns_nothing_and_works():
    model, batch = build(HEAD), batch_for(HEAD)
    inject_layerdrop(model, LayerDropConfig(0.0, sampler="learned", never_drop=(0, 1, 2, 3)))
    learn_rates(model, loss_of(model.train(), batch))
    assert layerdrop_state(model).rates == {"encoder": [0.0] * DEPTH}
    assert isinstance(model, nn.Module)


if __name__ == "__main__":
    train_as_one_of_two_ranks(Path(sys.argv[1]))
    leave_ranks()
