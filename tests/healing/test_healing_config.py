"""What is done in which round: plain values."""

from itertools import pairwise

import pytest

from hf_layerdrop import HealingConfig, HealingError
from hf_layerdrop.healing.config import numbered_within, planned_cuts


@pytest.mark.parametrize(
    ("methods", "rounds", "kept", "planned"),
    [
        (("map",), None, (0, 11), [(0, 11)]),  # nothing is trained between two rounds
        (("distill",), None, (0, 2, 4, 6, 8, 10), [(0, 2, 4, 6, 8, 10)]),  # half
        (("distill",), None, (0, 4, 8, 11), [(0, 1, 3, 4, 6, 8, 10, 11), (0, 4, 8, 11)]),
        (("lora",), 3, (0, 11), [(0, 1, 2, 4, 6, 8, 10, 11), (0, 1, 4, 10, 11), (0, 11)]),
    ],
)
def test_rounds(methods, rounds, kept, planned):
    cuts = planned_cuts({"encoder": kept}, {"encoder": 12}, HealingConfig(methods, rounds=rounds))
    assert [cut["encoder"] for cut in cuts] == planned
    for deeper, shallower in pairwise(cuts):
        assert set(shallower["encoder"]) < set(deeper["encoder"])


def test_a_cut_within_a_cut():
    earlier = {"encoder": (0, 2, 3, 5), "decoder": (0, 1)}
    assert numbered_within({"encoder": (0, 3), "decoder": (0, 1)}, earlier) == {"encoder": (0, 2), "decoder": (0, 1)}


@pytest.mark.parametrize("settings", [{"ridge": 0}, {"ridge": float("nan")}, {"rows": True}, {"lora_factor": -1}])
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(HealingError, match=next(iter(settings))):
        HealingConfig(**settings)
