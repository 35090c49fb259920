"""Cards say what a model was trained with, rows that drop their own layers too."""

from __future__ import annotations

from hf_layerdrop import LayerDropConfig
from hf_layerdrop.reports.card import describe_training


def test_rows_are_said_beside_the_rest() -> None:
    config = LayerDropConfig.for_pretraining(0.2, granularity="row")
    assert describe_training(config.to_dict()) == ("0.2, linear shape, row granularity, kept scale, falling schedule")
    assert describe_training(LayerDropConfig(0.2).to_dict()) == "0.2"
