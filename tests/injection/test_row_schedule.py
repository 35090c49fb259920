"""Rows beside a schedule that comes down to nothing: no warning, as there is of a batch that is too small at once."""

from __future__ import annotations

import pytest

from conftest import batch_for, build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, scale_rates

HEAD = "BertForSequenceClassification"


@pytest.mark.parametrize(("factor", "warns"), [(1.0, True), (0.1, False)])
def test_rates_that_a_schedule_has_lowered_are_no_reason_to_warn(
    factor: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rate = 0.1 if warns else 0.5  # of 3 rows, half a row is a sixth
    model = inject_layerdrop(build(HEAD).train(), LayerDropConfig(rate, granularity="row"))
    scale_rates(model, factor)
    model(**batch_for(HEAD))
    assert ("less than half a row" in caplog.text) == warns
