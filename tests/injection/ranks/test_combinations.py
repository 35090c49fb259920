"""Several forwards before one backward pass, masking, and parts of layers, on two ranks that share a model."""

from __future__ import annotations

import pytest

from combinations_worker import LOSSES, STRUCTURES
from ranks import SUPPORT, found_by_ranks


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(SUPPORT / "combinations_worker.py")


def assert_ends_where_one_process_ends(found: dict) -> None:
    """Check it under AdamW with momentum and decay, and that LayerDrop made a difference."""
    assert found["distance"] < 1e-5
    assert found["to rate 0"] > 1e-3


@pytest.mark.parametrize("find_unused", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_several_forwards_before_one_backward_end_where_one_process_ends(
    ranks: dict, loss: str, find_unused: bool
) -> None:
    for found in ranks[f"ddp {loss} {find_unused}"]:
        assert_ends_where_one_process_ends(found)
        assert found["spread"] == 0
        # A layer has no gradient where all forwards of all micro-steps dropped it, which few do.
        assert found["without gradient"] == ranks[f"ddp {loss} {not find_unused}"][0]["without gradient"] > 0


def test_several_forwards_are_recomputed_under_ddp_as_they_ran(ranks: dict) -> None:
    for found in ranks["ddp r-drop checkpointed"]:
        assert_ends_where_one_process_ends(found)
        assert found["without gradient"] == ranks["ddp r-drop False"][0]["without gradient"]


@pytest.mark.parametrize("case", ["ddp mask False", "ddp mask True", "ddp r-drop mask"])
def test_masking_under_ddp_ends_where_one_process_ends_and_leaves_no_gradient_out(ranks: dict, case: str) -> None:
    for found in ranks[case]:
        assert_ends_where_one_process_ends(found)
        assert found["spread"] == 0
        assert found["without gradient"] == 0


def test_masking_under_fsdp2_ends_where_one_process_ends_and_gathers_every_layer(ranks: dict) -> None:
    for found in ranks["fsdp mask"]:
        assert_ends_where_one_process_ends(found)
        assert found["gathered"][0] == found["gathered"][1] > 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_parts_of_layers_under_fsdp2_end_where_one_process_ends(ranks: dict, structure: str) -> None:
    for found in ranks[f"fsdp {structure}"]:
        assert_ends_where_one_process_ends(found)
        whole, some = found["gathered"]
        assert some < whole if "layer" in structure else some == whole > 0  # a layer is gathered as one
