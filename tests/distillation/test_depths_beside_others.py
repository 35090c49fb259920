"""Several depths in a step beside what else a config or a block says: obeyed, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, TrainingArguments

from depth_models import labelled, model_of
from hf_layerdrop import (
    DepthTrainer,
    DepthTraining,
    LayerDropConfig,
    LayerDropScheduleCallback,
    backward_depths,
    inject_layerdrop,
    layerdrop_state,
    parse_keep_layers,
    prepare_depths,
    prune_layers,
    remove_layerdrop,
    sub_network,
)
from hf_layerdrop.distillation.depths.step import DepthStep
from hf_layerdrop.errors import DistillationError, LayerDropStateError
from hf_layerdrop.injection.state import LayerDropState
from hf_layerdrop.samplers.draws import SAMPLER_VERSION

HEAD = "BertForSequenceClassification"
LAYERS = 6


def trained_sets(config: LayerDropConfig, version: int = SAMPLER_VERSION) -> list[tuple[int, ...]]:
    model = inject_layerdrop(model_of(HEAD, num_hidden_layers=LAYERS), config)
    state = layerdrop_state(model)
    assert isinstance(state, LayerDropState)
    state.use_sampler_version(version)
    masks = [mask for network in prepare_depths(model).networks for mask in network.masks.values()]
    return [tuple(layer for layer, runs in enumerate(mask) if runs) for mask in masks]


def test_the_nested_sets_of_a_config_are_those_that_are_trained() -> None:
    nested = trained_sets(LayerDropConfig.for_depths([6, 4, 1], nested=True))
    assert nested == [parse_keep_layers(f"nested:{depth}", {"layers": LAYERS})["layers"] for depth in (6, 4, 1)]
    assert nested != trained_sets(LayerDropConfig.for_depths([6, 4, 1]))


def test_the_sets_of_a_run_that_was_begun_before_go_on() -> None:
    assert trained_sets(LayerDropConfig.for_depths([6, 1]), version=2)[-1] == (0,)
    assert trained_sets(LayerDropConfig.for_depths([6, 1]))[-1] == (LAYERS - 1,)


def test_a_schedule_is_refused() -> None:
    model = model_of(HEAD)
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 2], schedule="falling"))
    with pytest.raises(LayerDropStateError, match=r"'falling'.*schedule=None"):
        backward_depths(model, labelled(HEAD), step=0)


@pytest.mark.parametrize(
    ("head", "setting", "said"),
    [("LlamaForCausalLM", {"scale": "kept"}, "scale='none'"), (HEAD, {"granularity": "row"}, "granularity='batch'")],
)
def test_what_is_about_drawn_layers_is_refused(head: str, setting: dict[str, str], said: str) -> None:
    model = model_of(head)
    inject_layerdrop(model, LayerDropConfig(0.0, **setting))
    with pytest.raises(LayerDropStateError, match=said):
        backward_depths(model, labelled(head), DepthTraining([4, 2]), step=0)


def test_a_model_that_is_a_sub_network_is_refused_though_its_depths_are_known() -> None:
    model, training, batch = model_of(HEAD), DepthTraining([4, 2]), labelled(HEAD)
    backward_depths(model, batch, training, step=0)
    with sub_network(model, [0, 1]), pytest.raises(LayerDropStateError, match="after the block"):
        backward_depths(model, batch, training, step=1)
    assert "loss_depth_2" in backward_depths(model, batch, training, step=1)


@pytest.mark.parametrize(
    "change", [remove_layerdrop, lambda model: inject_layerdrop(model, 0.5), lambda model: prune_layers(model, 3)]
)
def test_another_layerdrop_than_was_prepared_is_refused(change: Callable[[PreTrainedModel], object]) -> None:
    model = model_of(HEAD, num_hidden_layers=LAYERS)
    plan, batch = prepare_depths(model, [6, 2]), labelled(HEAD)
    change(model)
    step = DepthStep(plan, batch, 0, 0)
    with pytest.raises(LayerDropStateError, match="injected again"), step.running(model, step.networks[0]):
        pass


def test_a_schedule_callback_is_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{name: value[0] for name, value in labelled(HEAD).items()}]
    callbacks = [LayerDropScheduleCallback("falling")]
    trainer = DepthTrainer(model_of(HEAD), arguments, train_dataset=rows, callbacks=callbacks, depth_training=[4, 2])
    with pytest.raises(DistillationError, match="leave the callback out"):
        trainer.train()
