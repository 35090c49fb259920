"""Two ranks: scaled residuals, falling rates and nested sets end where one process ends."""

from __future__ import annotations

import pytest

from ranks import SUPPORT, found_by_ranks
from sampler_worker import CONFIGS


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(SUPPORT / "sampler_worker.py")


@pytest.mark.parametrize("name", CONFIGS)
def test_ddp_draws_the_same_and_ends_where_one_process_ends(ranks: dict, name: str) -> None:
    for found in ranks[f"ddp-{name}"]:
        assert found["same_draws"]
        assert found["distance"] < 1e-5
        assert found["spread"] == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_fsdp_ends_where_one_process_ends(ranks: dict, name: str) -> None:
    assert all(found["distance"] < 1e-5 for found in ranks[f"fsdp-{name}"])


def test_ranks_that_scale_otherwise_are_an_error(ranks: dict) -> None:
    assert all("scaled" in found["error"] for found in ranks["disagreement"])
