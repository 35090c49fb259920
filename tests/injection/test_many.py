"""Any number of injected models in any module: what is said to the module reaches all of them."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import EncoderDecoderModel, Trainer, TrainerCallback

from conftest import DEPTH, assert_same_tensors, batch_for, build, layers_of, recorded_runs
from hf_layerdrop import (
    DepthEvaluationCallback,
    LayerDropBertForSequenceClassification,
    LayerDropConfig,
    LayerDropScheduleCallback,
    evaluate_depths,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    remove_layerdrop,
    set_rates,
    set_step,
    sub_network,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.injected import find_injected, injected_models
from hf_layerdrop.injection.rates import scale_rates
from rows import arguments

HEAD = "BertForSequenceClassification"
STEPS = 12


class Towers(nn.Module):
    """A bi-encoder: two models beside each other, and a loss of what both give."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(models)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> dict[str, torch.Tensor]:
        first, *others = (tower(input_ids=input_ids).last_hidden_state[:, 0] for tower in self.towers.values())
        return {"loss": sum((first - other).square().mean() for other in others) + first.square().mean()}


class Wrapper(nn.Module):
    """A module of one's own around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


def bi_encoder(rate: object = 0.5, names: tuple[str, str] = ("query", "passage")) -> Towers:
    towers = {name: build("BertModel", seed=place) for place, name in enumerate(names)}
    for tower in towers.values():
        inject_layerdrop(tower, rate)
    return Towers(**towers).train()


def encoder_decoder(rate: object = 0.5) -> EncoderDecoderModel:
    parts = build("BertModel"), build("BertLMHeadModel", add_cross_attention=True)
    model = EncoderDecoderModel(encoder=parts[0], decoder=parts[1])
    for part in (model.encoder, model.decoder):
        inject_layerdrop(part, rate)
    return model.train()


MODULES: dict[str, Callable[..., nn.Module]] = {
    "two towers": bi_encoder,
    "two towers in a wrapper": lambda rate=0.5: Wrapper(bi_encoder(rate)).train(),
    "EncoderDecoderModel": encoder_decoder,
}


@pytest.fixture(params=MODULES)
def make(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return MODULES[request.param]


def masks(module: nn.Module, steps: int = STEPS) -> dict[str, list[Any]]:
    """Return what the stacks of each model draw in the first forward of each step."""
    found: dict[str, list[Any]] = {}
    for step in range(steps):
        set_step(module, step)
        for name, draw in layerdrop_state(module).draws.items():
            found.setdefault(name, []).append(draw.draw())
    return found


def alone(rate: object = 0.5) -> list[Any]:
    model = build("BertModel")
    inject_layerdrop(model, rate)
    return masks(model)["encoder"]


def test_models_with_one_seed_draw_apart_and_the_same_in_every_run_and_wrapper(make: Callable[..., nn.Module]) -> None:
    found = masks(make())
    first, second = found.values()
    assert first != second
    assert masks(make()) == found == masks(Wrapper(make()))
    assert masks(bi_encoder(names=("passage", "query"))) == masks(bi_encoder())


@pytest.mark.parametrize("around", [0, 1, 2])
def test_a_model_that_is_alone_draws_as_it_always_did(around: int) -> None:
    model: nn.Module = build("BertModel")
    inject_layerdrop(model, 0.5)
    for _ in range(around):
        model = Wrapper(model)
    assert masks(model)["encoder"] == alone()
    plain = build("BertModel")  # a teacher without LayerDrop is no sibling
    assert masks(Towers(student=model, teacher=plain))["encoder"] == alone()


def test_without_a_step_the_first_forward_tells_them_apart() -> None:
    module, batch = bi_encoder(), batch_for("BertModel")
    seen: dict[str, list[list[int]]] = {"query": [], "passage": []}
    for _ in range(STEPS):
        with recorded_runs(module.towers["query"]) as query, recorded_runs(module.towers["passage"]) as passage:
            module(**batch)["loss"].backward()
        seen["query"] += query.values()
        seen["passage"] += passage.values()
    assert seen["query"] != seen["passage"]
    assert len(set(map(tuple, seen["query"]))) > 2


def drawn_in_a_forward(module: Towers, step: Callable[[Towers, int], None]) -> dict[str, list[list[int]]]:
    """Return which layers of each tower run in some steps, which are told to it in some way."""
    seen: dict[str, list[list[int]]] = {name: [] for name in module.towers}
    for number in range(STEPS):
        step(module, number)
        with recorded_runs(module.towers["query"]) as query, recorded_runs(module.towers["passage"]) as passage:
            module(**batch_for("BertModel"))
        seen["query"] += query.values()
        seen["passage"] += passage.values()
    return seen


def told_one_by_one(module: Towers, step: int) -> None:
    for tower in module.towers.values():
        set_step(tower, step)


def read_before(module: Towers, step: int) -> None:
    for tower in module.towers.values():
        assert layerdrop_state(tower).rates == {"encoder": [0.5] * DEPTH}
        layerdrop_state(tower).state_dict()
    told_one_by_one(module, step)


def read_of_a_part(module: Towers, step: int) -> None:
    set_step(module, step)
    layerdrop_state(nn.ModuleDict({"other": module.towers["query"], "name": module.towers["passage"]}))


@pytest.mark.parametrize("step", [told_one_by_one, read_before, read_of_a_part])
def test_reading_a_state_moves_no_draw_and_towers_that_are_stepped_one_by_one_draw_apart(
    step: Callable[[Towers, int], None],
) -> None:
    expected = drawn_in_a_forward(bi_encoder(), set_step)
    assert expected["query"] != expected["passage"]
    assert drawn_in_a_forward(bi_encoder(), step) == expected


def test_a_tower_of_a_group_keeps_its_place_in_the_whole_module() -> None:
    def grouped() -> nn.Module:
        return nn.ModuleDict({"group": bi_encoder(), "third": bi_encoder().towers["query"]})

    module, other = grouped(), grouped()
    set_step(module, 3)
    set_step(other, 3)
    set_step(other["group"], 3)
    for one, two in zip(*(layerdrop_state(each).draws.values() for each in (module, other)), strict=True):
        assert one.draw() == two.draw()


def test_a_state_of_one_tower_brings_its_place_along() -> None:
    module = bi_encoder()
    set_step(module, 3)
    for name, tower in module.towers.items():
        saved = json.loads(json.dumps(layerdrop_state(tower).state_dict()))
        alone = build("BertModel")
        inject_layerdrop(alone, 0.5)
        layerdrop_state(alone).load_state_dict(saved)
        (draw,) = layerdrop_state(alone).draws.values()
        for number in range(STEPS):
            set_step(alone, number)
            set_step(module, number)
            assert draw.draw() == layerdrop_state(module).draws[f"{name}.encoder"].draw()


def test_steps_rates_and_seeds_reach_all(make: Callable[..., nn.Module]) -> None:
    module = make()
    set_step(module, 7, 2)
    state = layerdrop_state(module)
    assert {(draw.step, draw.micro_step) for draw in state.draws.values()} == {(7, 2)}
    assert len(state.draws) == 2
    set_rates(module, 0.25)
    assert set(map(tuple, layerdrop_state(module).rates.values())) == {(0.25,) * DEPTH}
    for model in injected_models(module).values():
        assert list(model.config.hf_layerdrop["rates"].values()) == [[0.25] * DEPTH]
    scale_rates(module, 0.5)
    assert set(map(tuple, layerdrop_state(module).rates.values())) == {(0.125,) * DEPTH}
    before = masks(module)
    layerdrop_state(module).set_seed(5)
    assert all(drawn != before[name] for name, drawn in masks(module).items())


def test_rates_may_name_the_stack_of_one_model() -> None:
    module = bi_encoder()
    set_rates(module, {"query.encoder": 0.1})
    assert layerdrop_state(module).rates == {"query.encoder": [0.1] * DEPTH, "passage.encoder": [0.5] * DEPTH}
    set_rates(module, {"encoder": 0.2, "passage.encoder": 0.3})
    assert layerdrop_state(module).rates == {"query.encoder": [0.2] * DEPTH, "passage.encoder": [0.3] * DEPTH}
    for bad in ({"middle": 0.1}, {"query.decoder": 0.1}, {"encoder": 1.5}, {"query.encoder": 0.1, "encoder": 2}):
        with pytest.raises(LayerDropConfigError):
            set_rates(module, bad)
    assert layerdrop_state(module).rates == {"query.encoder": [0.2] * DEPTH, "passage.encoder": [0.3] * DEPTH}


def test_a_state_drives_all_and_goes_through_json(make: Callable[..., nn.Module]) -> None:
    module, other = make(), make(LayerDropConfig(0.3, seed=8))
    set_step(module, 5, 1)
    set_rates(module, 0.4)
    saved = json.loads(json.dumps(layerdrop_state(module).state_dict()))
    assert layerdrop_state(other).state_dict() != saved
    layerdrop_state(other).load_state_dict(saved)
    assert layerdrop_state(other).state_dict() == saved
    drawing = [[draw.draw() for draw in layerdrop_state(each).draws.values()] for each in (module, other)]
    assert drawing[0] == drawing[1]
    broken = copy.deepcopy(saved)
    del next(reversed(broken["models"].values()))["seed"]
    for bad in (broken, {"models": {}}, {}, layerdrop_state(next(iter(injected_models(module).values()))).state_dict()):
        with pytest.raises(LayerDropConfigError):
            layerdrop_state(other).load_state_dict(bad)
        assert layerdrop_state(other).state_dict() == saved


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_draw_alike_and_go_on_alone(copied: Callable[[nn.Module], nn.Module]) -> None:
    module = bi_encoder()
    expected = masks(module)
    twin = copied(module)
    set_rates(module, 0.0)
    assert masks(twin) == expected != masks(module)


def test_all_are_removed(make: Callable[..., nn.Module]) -> None:
    module = make()
    assert any(hasattr(type(part), "_adopted_with") for part in module.modules())
    remove_layerdrop(module)
    assert find_injected(module) is None
    assert not any("_layerdrop" in name for part in module.modules() for name in vars(part))
    assert not any(hasattr(type(part), "_adopted_with") for part in module.modules())
    with pytest.raises(LayerDropStateError, match="not injected"):
        set_step(module, 0)


def test_a_part_of_an_injected_model_is_not_injected_again() -> None:
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, 0.5)
    with pytest.raises(LayerDropStateError, match="part of a model"):
        inject_layerdrop(model.bert, 0.2)
    whole = encoder_decoder()
    inject_layerdrop(whole, 0.2)  # what was injected in its parts is replaced
    assert list(injected_models(whole)) == [""]
    remove_layerdrop(whole)
    assert find_injected(whole) is None


def test_a_cut_of_a_composite_model_pauses_and_removes_all() -> None:
    model, ids = encoder_decoder(1.0), batch_for("BertModel")["input_ids"]
    stacks = {name: len(layers) for name, layers in layers_of(model).items()}
    with sub_network(model, "all"), recorded_runs(model) as runs:
        model(input_ids=ids, decoder_input_ids=ids)
    assert {name: len(ran) for name, ran in runs.items()} == stacks == dict.fromkeys(stacks, DEPTH)
    with recorded_runs(model) as runs:
        model(input_ids=ids, decoder_input_ids=ids)
    assert not any(runs.values())
    prune_layers(model, "all")
    assert find_injected(model) is None


# --- Trainer ---------------------------------------------------------------------------------------


def rows(count: int = 24) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"input_ids": torch.randint(5, 60, (7,), generator=generator), "labels": torch.tensor(0)} for _ in range(count)
    ]


class Spy(TrainerCallback):
    """Note at the end of each step the rates, and the layers that ran in it."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_step_end(self, args: object, state: object, control: object, *, model: nn.Module, **kwargs: object) -> None:
        found = layerdrop_state(model)
        self.rates.append({name: rates[-1] for name, rates in found.rates.items()})
        self.steps.append(next(iter(found.draws.values())).step)


def trainer_for(module: nn.Module, folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 3}
    settings |= {"logging_steps": 2, "seed": 5, "learning_rate": 0.01, "save_strategy": "steps"}
    settings |= {"remove_unused_columns": False, "label_names": ["labels"], **changes}
    sets = {"train_dataset": rows(), "eval_dataset": rows(6)}
    return Trainer(module, arguments(folder, **settings), callbacks=list(callbacks), **sets)


def test_trainer_steps_schedules_seeds_and_logs_reach_all_and_a_resumed_run_ends_equal(tmp_path: Path) -> None:
    whole, cut, spy = bi_encoder(), bi_encoder(), Spy()
    trainer = trainer_for(whole, tmp_path / "whole", LayerDropScheduleCallback("linear"), spy)
    with recorded_runs(whole.towers["query"]) as query, recorded_runs(whole.towers["passage"]) as passage:
        trainer.train()
    assert query["encoder"] != passage["encoder"]
    assert spy.rates == [
        {name: pytest.approx(0.5 * step / 6) for name in layerdrop_state(whole).rates} for step in range(6)
    ]
    assert {model.config.hf_layerdrop["seed"] for model in injected_models(whole).values()} == {5}
    (log, *_) = [entry for entry in trainer.state.log_history if "layerdrop_rate" in entry]
    assert {"layerdrop_query_layers_used", "layerdrop_passage_layers_used", "layerdrop_query_rate"} <= set(log)
    again = trainer_for(cut, tmp_path / "cut", LayerDropScheduleCallback("linear"))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_tensors(dict(cut.named_parameters()), dict(whole.named_parameters()))


def test_trainer_learns_the_rates_of_those_that_learn(tmp_path: Path) -> None:
    module = bi_encoder(LayerDropConfig(0.25, sampler="learned"))
    remove_layerdrop(module.towers["passage"])
    inject_layerdrop(module.towers["passage"], 0.25)
    trainer_for(module, tmp_path).train()
    rates = layerdrop_state(module).rates
    assert rates["passage.encoder"] == [0.25] * DEPTH != rates["query.encoder"]
    saved = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert set(saved["LayerDropStepCallback"]["attributes"]["models"]) == {"query", "passage"}


def test_a_student_beside_its_teacher_is_reached_and_the_teacher_too(tmp_path: Path) -> None:
    module = bi_encoder(names=("student", "teacher"))
    module.towers["teacher"].eval().requires_grad_(False)
    set_rates(module, {"teacher.encoder": 0})
    trainer_for(module, tmp_path, max_steps=2, save_strategy="no").train()
    assert {draw.step for draw in layerdrop_state(module).draws.values()} == {1}


@pytest.mark.parametrize("around", [Wrapper, averaged], ids=["a module of one's own", "AveragedModel"])
def test_depths_are_evaluated_in_a_plain_module_that_trainer_trains(
    around: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = around(LayerDropBertForSequenceClassification(build(HEAD).config, layerdrop=0.5))
    settings = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "save_strategy": "no"}
    trainer = trainer_for(model, tmp_path, DepthEvaluationCallback([DEPTH, 2]), **settings)
    trainer.train()
    (metrics,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    depths = {name: value for entry in trainer.state.log_history for name, value in entry.items() if "depth_" in name}
    assert depths["eval_depth_4_loss"] == pytest.approx(metrics["eval_loss"])
    assert depths["eval_depth_2_loss"] != depths["eval_depth_4_loss"]
    draw = next(iter(layerdrop_state(model).draws.values()))
    assert draw.step == 1


# --- A plain module around a model -----------------------------------------------------------------


@pytest.mark.parametrize("around", [Wrapper, averaged], ids=["a module of one's own", "AveragedModel"])
def test_a_plain_module_around_a_model_is_measured_as_the_model(around: Callable[[nn.Module], nn.Module]) -> None:
    model = build(HEAD)
    inject_layerdrop(model, 0.5)
    batches = [{**batch_for(HEAD), "labels": torch.tensor([0, 1, 0])}]
    expected = evaluate_depths(model, batches, depths=[DEPTH, 2], progress=False)
    found = evaluate_depths(around(model), batches, depths=[DEPTH, 2], progress=False)
    assert [result.metrics for result in found] == [result.metrics for result in expected]
    assert [result.keep_layers for result in found] == [result.keep_layers for result in expected]


def test_drawn_masks_of_a_composite_config_are_those_that_run() -> None:
    module, batch = bi_encoder(), batch_for("BertModel")
    set_step(module, 3)
    expected = {name: draw.draw() for name, draw in layerdrop_state(module).draws.items()}
    with recorded_runs(module.towers["query"]) as query, recorded_runs(module.towers["passage"]) as passage:
        module(**batch)
    assert query["encoder"] == [layer for layer, kept in enumerate(expected["query.encoder"]) if kept]
    assert passage["encoder"] == [layer for layer, kept in enumerate(expected["passage.encoder"]) if kept]
