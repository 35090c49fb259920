"""Two ranks: the same draws, the gradients of one process, no gathers for dropped layers, errors in place of hangs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from conftest import batch_for, build, recorded_runs
from distributed_worker import STEPS
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropStateError, UnsupportedModelError
from hf_layerdrop.injection.inject import inject_layerdrop, remove_layerdrop
from hf_layerdrop.injection.ranks.ddp import leave_ranks
from ranks import SUPPORT, found_by_ranks

WORKER = SUPPORT / "distributed_worker.py"
DDP = [
    f"ddp-{find_unused}-{checkpointing}-{optimizer}"
    for find_unused in (False, True)
    for checkpointing in ("none", "plain", "reentrant")
    for optimizer in ("sgd", "adamw")
    if not (find_unused and checkpointing == "reentrant")  # impossible for any model, see below
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(WORKER, str(tmp_path_factory.mktemp("trainer")))


@pytest.mark.parametrize("case", DDP)
def test_ddp_ends_where_one_process_ends(ranks: dict, case: str) -> None:
    for found in ranks[case]:
        assert found["distance"] < 1e-5  # with momentum and decay: a zero gradient in place of None would show
        assert found["spread"] == 0
        assert found["dropped"] > 0  # layers that the optimizer saw without a gradient


def test_what_no_model_can_do_is_said_before_the_first_step(ranks: dict) -> None:
    assert all("use_reentrant" in found["error"] for found in ranks["impossible"])


def test_ranks_that_disagree_are_an_error_on_every_rank(ranks: dict) -> None:
    for found in ranks["disagreement"]:
        seeds, rates = found["errors"]
        assert "seed 0" in seeds
        assert "seed 1" in seeds
        assert "0.1" in rates
        assert "0.3" in rates


def test_fsdp_gathers_no_dropped_layer_and_ends_where_one_process_ends(ranks: dict) -> None:
    for found in ranks["fsdp"]:
        none_dropped, half_dropped, all_dropped = found["gathered"]
        assert none_dropped > half_dropped > all_dropped
        assert all_dropped == STEPS  # one a step, for what is in no layer
        assert found["distance"] < 1e-5


@pytest.mark.parametrize("way", ["plain", "recomputed"])
def test_fsdp_by_accelerate_gathers_no_dropped_layer_and_ends_where_one_process_ends(ranks: dict, way: str) -> None:
    for found in ranks["fsdp-accelerate"]:
        none_dropped, half_dropped, all_dropped = (found[f"rate {rate}"][way] for rate in (0.0, 0.5, 1.0))
        assert none_dropped["sharded"] == 4  # each layer by itself: its class was recognised by name
        assert none_dropped["gathered"] > half_dropped["gathered"] > all_dropped["gathered"]
        assert all(run["distance"] < 1e-5 for run in (none_dropped, half_dropped, all_dropped))


def test_fsdp_activation_checkpointing_recomputes_what_ran_and_changes_no_gradient(ranks: dict) -> None:
    for found in ranks["fsdp-accelerate"]:
        for rate in (0.0, 0.5, 1.0):
            compared = found[f"rate {rate}"]
            assert compared["same_nones"]
            assert compared["apart"] < 1e-6
            assert compared["recomputed"]["runs"] == [2 * runs for runs in compared["plain"]["runs"]]
        assert found["rate 0.0"]["plain"]["runs"] == [STEPS] * 4
        assert all(0 < runs < STEPS for runs in found["rate 0.5"]["plain"]["runs"])
        assert found["rate 1.0"]["recomputed"]["runs"] == [0] * 4


@pytest.mark.parametrize("find_unused", [False, True])
def test_ddp_by_accelerate_ends_where_one_process_ends(ranks: dict, find_unused: bool) -> None:
    for found in ranks[f"accelerate-{find_unused}"]:
        assert found["distance"] < 1e-5
        assert found["spread"] == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_needs_no_flag(ranks: dict, checkpointing: bool) -> None:
    for found in ranks[f"trainer-{checkpointing}"]:
        assert found["find_unused"] is not checkpointing  # Trainer's own choice, and each would fail without our touch
        assert found["spread"] == 0
        assert found["distance"] < 1e-5
        assert found["moved"] > 1e-3
        assert found["dropped"] > 0  # layers that the optimizer saw without a gradient
        assert found["steps"] == STEPS - 1  # Trainer's steps were followed


def test_a_rate_that_one_rank_alone_changes_is_an_error_within_the_time_given(ranks: dict) -> None:
    first, second = (found["error"] for found in ranks["rate-changed-by-one"])
    assert "change rates and seeds on every rank" in first
    assert not second  # it was not asked anything, and is ended with the other


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    leave_ranks()


def test_a_model_that_ddp_has_wrapped_is_refused_and_the_one_inside_is_not(one_rank: None) -> None:
    wrapped = DistributedDataParallel(build("BertForSequenceClassification").train())
    with pytest.raises(UnsupportedModelError, match="before it is wrapped"):
        inject_layerdrop(wrapped, 0.5)
    inject_layerdrop(wrapped.module, (0, 1, 0, 1))
    with recorded_runs(wrapped.module) as runs:
        wrapped(**batch_for("BertForSequenceClassification"))
    assert runs == {"encoder": [0, 2]}


def test_a_model_that_fsdp_has_sharded_drops_all_the_same(one_rank: None) -> None:
    model = build("BertForSequenceClassification").train()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    inject_layerdrop(model, (0, 1, 0, 1))
    batch = batch_for("BertForSequenceClassification")
    with recorded_runs(model) as runs:
        model(**batch).logits.sum().backward()
        remove_layerdrop(model)
        model(**batch)
    assert runs == {"encoder": [0, 2, 0, 1, 2, 3]}


def test_data_parallel_is_refused_with_what_to_do_instead() -> None:
    model = build("BertForSequenceClassification").train()
    inject_layerdrop(model, 0.5)
    encoder = model.bert.encoder._replicate_for_data_parallel()
    with pytest.raises(LayerDropStateError, match="accelerate launch"):
        encoder(torch.zeros(1, 4, 16), attention_mask=None)
    assert model(**batch_for("BertForSequenceClassification")).logits.shape == (3, 2)


def test_at_the_end_wrapped_models_go_before_the_process_group_and_where_there_is_none_nothing_happens() -> None:
    leave_ranks()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    held: list[object] = [DistributedDataParallel(build("BertForSequenceClassification"))]
    held.append(held)  # nothing but the collector frees it
    wrapped = weakref.ref(held[0])
    del held
    order: list[str] = []
    weakref.finalize(wrapped(), lambda: order.append("model" if distributed.is_initialized() else "too late"))
    assert run(["--version"]) == 0
    assert order == ["model"]
    assert not distributed.is_initialized()
