"""Rows that drop their own layers on two ranks that share a model: nothing special happens."""

from __future__ import annotations

import pytest

from ranks import SUPPORT, found_by_ranks


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(SUPPORT / "row_ranks_worker.py")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("find_unused", [False, True])
def test_ddp_ends_where_one_process_ends_that_runs_the_halves_in_turn(
    ranks: dict, find_unused: bool, checkpointing: bool
) -> None:
    for found in ranks[f"ddp {find_unused} {checkpointing}"]:
        assert found["distance"] < 1e-5
        assert found["to rate 0"] > 1e-3
        assert found["spread"] == 0
        assert found["rows"] == [[2]] * 4  # of four, at rate 0.4, in each forward and recomputation on each rank


def test_fsdp2_ends_where_one_process_ends_and_gathers_every_layer(ranks: dict) -> None:
    for found in ranks["fsdp"]:
        assert found["distance"] < 1e-5
        assert found["to rate 0"] > 1e-3
        assert found["gathered"][0] == found["gathered"][1] > 0


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_ranks_with_unequal_batches_do_not_wait_for_each_other(ranks: dict, wrapper: str) -> None:
    assert [found["spread"] for found in ranks[f"uneven {wrapper}"]] == [0, 0]


def test_a_rank_that_drops_by_batch_is_told_apart(ranks: dict) -> None:
    assert all("by row" in found["said"] for found in ranks["mixed"])
