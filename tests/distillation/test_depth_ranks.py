"""Several depths a step on two ranks end where one process ends, however the model is distributed."""

from __future__ import annotations

import pytest

from ranks import SUPPORT, found_by_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(SUPPORT / "depths_worker.py", str(tmp_path_factory.mktemp("trainer")))


@pytest.mark.parametrize("case", ["ddp-False", "ddp-True", "ddp-False-checkpointed", "ddp-True-checkpointed"])
def test_ddp_ends_where_one_process_ends(ranks: dict, case: str) -> None:
    for found in ranks[case]:
        assert found["distance"] < 1e-5  # with momentum and decay: a zero gradient in place of None would show
        assert found["moved"] > 1e-3
        assert found["spread"] == 0
        assert found["same_nones"]
        assert found["without gradient"] > 0  # the layer that no depth of a step runs


def test_fsdp_ends_there_and_gathers_no_layer_that_is_left_out(ranks: dict) -> None:
    for found in ranks["fsdp"]:
        assert found["distance"] < 1e-5
        assert found["same_nones"]
        most = 2 * found["layers"] + 2 * found["networks"]  # each once a forward and a backward pass, and the rest
        assert found["gathered"] <= most < 2 * 4 * found["networks"]


def test_trainer_ends_there_without_any_flag_and_logs_each_depth(ranks: dict) -> None:
    for found in ranks["trainer"]:
        assert found["distance"] < 1e-5
        assert found["spread"] == 0
        assert {"loss_depth_4", "loss_depth_3", "loss_depth_1-3"} <= set(found["logged"])


def test_ranks_that_train_other_depths_are_an_error_on_every_rank(ranks: dict) -> None:
    for found in ranks["disagreement"]:
        assert "depth_2" in found["error"]
        assert "depth_3" in found["error"]
