"""Ranks that disagree, rates that change on the way, runs that go on elsewhere: an error or a promise, never a hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, Trainer

from conftest import build
from disagreement_worker import OTHER, RESUMED, WRAPPERS, new_injected
from distributed_worker import STEPS, distance, trained_alone, trainer_for
from hf_layerdrop import inject_layerdrop
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError, UnsupportedModelError
from hf_layerdrop.injection.ranks.ddp import leave_ranks
from hf_layerdrop.training.callbacks import LayerDropScheduleCallback
from integrations import ROWS, training_arguments
from ranks import SUPPORT, found_by_ranks

WORKER = SUPPORT / "disagreement_worker.py"
HEAD = "BertForSequenceClassification"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process leaves a checkpoint for the two ranks, and they for it."""
    folder = tmp_path_factory.mktemp("runs")
    trainer_for(new_injected(), folder / "alone", 1, save_strategy="steps", save_steps=RESUMED).train()
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(WORKER, str(folder))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("other", OTHER)
def test_another_config_on_one_rank_is_an_error_on_both(ranks: dict, wrapper: str, other: str) -> None:
    for found in ranks[f"{wrapper}: {other}"]:
        assert "would drop different layers" in found["error"]
        assert "the same config" in found["error"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_forward_before_the_model_is_shared_does_not_count_as_agreement(ranks: dict, wrapper: str) -> None:
    assert all("seed 1" in found["error"] for found in ranks[f"after a forward alone: {wrapper}"])


@pytest.mark.parametrize("rate", ["0", "0.5"])
def test_a_stack_that_one_rank_alone_runs_is_not_waited_for_and_no_disagreement(ranks: dict, rate: str) -> None:
    for found in ranks[f"stacks of one rank: encoder at {rate}"]:
        assert not found["error"]
        assert found["spread"] == 0
        assert found["moved"] > 1e-3


def test_a_rank_without_layerdrop_is_not_waited_for_for_ever(ranks: dict) -> None:
    first, second = (found["error"] for found in ranks["not injected on one"])
    assert "Rank 1 did not say" in first
    assert not second


@pytest.mark.parametrize("wrapper", ["ddp", "find_unused", "fsdp"])
def test_rates_that_change_within_a_step_on_all_ranks_end_where_one_process_ends(ranks: dict, wrapper: str) -> None:
    for found in ranks[f"rates within a step: {wrapper}"]:
        assert found["distance"] < 1e-5
        assert found["moved"] > 1e-3


def test_a_model_that_fsdp_has_sharded_before_ends_where_one_process_ends(ranks: dict) -> None:
    assert all(found["distance"] < 1e-5 for found in ranks["sharded before"])


def test_a_schedule_that_leaves_the_range_ends_the_run_on_both_ranks(ranks: dict) -> None:
    for found in ranks["schedule"]:
        assert "from 0 to 1" in found["error"]
        assert found["steps"] == STEPS // 4 + 1  # the first in which it does


def test_two_ranks_go_on_with_a_checkpoint_of_one_process(ranks: dict) -> None:
    for found in ranks["of one process before"]:
        assert found["distance"] < 1e-5
        assert found["spread"] == 0


def test_one_process_goes_on_with_a_checkpoint_of_two_ranks(ranks: dict, folder: Path) -> None:
    assert all(found["distance"] < 1e-5 for found in ranks["for one process after"])
    model = new_injected()
    trainer = trainer_for(model, folder / "one", 1)
    trainer.train(resume_from_checkpoint=str(folder / "two" / f"checkpoint-{RESUMED}"))
    assert distance(model, trained_alone("adamw")) < 1e-5
    assert trainer.state.global_step == STEPS


# --- in one process -----------------------------------------------------------------------------------------------


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    leave_ranks()


def in_fsdp1(module: torch.nn.Module) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"))


@pytest.mark.parametrize("wrap", [in_fsdp1, DistributedDataParallel, checkpoint_wrapper])
@pytest.mark.parametrize("what", ["model", "layers"])
def test_what_was_wrapped_before_is_refused_with_the_wrapper_s_name(one_rank: None, wrap: object, what: str) -> None:
    model = build(HEAD)
    if what == "layers":
        for index, layer in enumerate(model.bert.encoder.layer):
            model.bert.encoder.layer[index] = wrap(layer)
        name, given = type(model.bert.encoder.layer[0]).__name__, model
    elif wrap is checkpoint_wrapper:
        pytest.skip("around the whole model it changes nothing that is looked at")
    else:
        given = wrap(model)
        name = type(given).__name__
    with pytest.raises(UnsupportedModelError, match=rf"wrapped by {name}|inside of {name}"):
        inject_layerdrop(given, 0.5)
    assert not hasattr(model.config, "hf_layerdrop")


@pytest.mark.parametrize("factor", [-0.1, 1.01, float("nan"), None, "half"])
def test_a_schedule_below_above_or_beside_the_range_ends_before_the_step(factor: object, tmp_path: Path) -> None:
    trainer = trainer_for(new_injected(), tmp_path, 1)
    trainer.add_callback(LayerDropScheduleCallback(lambda progress: factor))
    with pytest.raises(LayerDropConfigError, match="from 0 to 1"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("depth", [3, 6])
def test_a_checkpoint_of_another_depth_is_refused_also_where_it_holds_no_optimizer(tmp_path: Path, depth: int) -> None:
    def trainer_of(model: PreTrainedModel) -> Trainer:
        inject_layerdrop(model, 0.5)
        arguments = training_arguments(tmp_path, save_strategy="steps", save_steps=3, save_only_model=True)
        return Trainer(model, arguments, train_dataset=ROWS)

    trainer_of(build(HEAD)).train()
    other = trainer_of(build(HEAD, num_hidden_layers=depth))
    with pytest.raises(LayerDropStateError, match=rf"'encoder': 4.*'encoder': {depth}"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer_of(build(HEAD)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3")).global_step == 6
