"""Rows and intervals of what is measured: of shares of rows, by Wilson, and of nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import batch_for, build
from hf_layerdrop import SubNetworkResult, evaluate_depths, read_results, write_results
from hf_layerdrop.evaluation.confidence import Rows, interval_of, rows_of, wilson
from hf_layerdrop.results.table import format_score, measured_rows, render_markdown


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_ends_are_where_a_share_would_just_be_likely(drawn):
    """Wilson's ends are the shares p from which the observed one is 1.96 standard deviations of p away."""
    right, count = drawn
    share = right / count
    for end in wilson(share, count):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-5)
    low, high = wilson(share, count)
    assert low - 1e-12 <= share <= high + 1e-12


def test_known_values():
    assert wilson(786 / 872, 872) == pytest.approx((0.8798, 0.9195), abs=1e-4)


def test_only_shares_of_rows_have_one():
    rows = Rows(20, one_label=True)
    assert interval_of("accuracy", 0.35, rows) == wilson(0.35, 20)
    for metric in ("f1", "loss", "matthews_correlation", "bleu", "pearson"):
        assert interval_of(metric, 0.35, rows) is None
    assert interval_of("accuracy", 0.35, Rows(20)) is None  # several labels a row, as of tokens
    assert interval_of("accuracy", 0.351, rows) is None  # no share of twenty
    assert interval_of("accuracy", 35.0, rows) is None
    assert interval_of("accuracy", math.nan, rows) is None
    assert rows_of(np.zeros((5, 3))) == Rows(5)
    assert rows_of(np.zeros(5)) == Rows(5, one_label=True)
    assert rows_of([np.zeros(5)]) == rows_of(None) == Rows()


@pytest.mark.parametrize(
    ("head", "labels"), [("BertForSequenceClassification", (3,)), ("BertForTokenClassification", (3, 9))]
)
def test_a_measurement_says_its_rows(head, labels):
    batches = [{**batch_for(head, seed), "labels": torch.randint(0, 2, labels)} for seed in range(4)]
    results = evaluate_depths(build(head), batches, depths=[4, 2], metric="accuracy" if len(labels) == 1 else "loss")
    for result in results:
        assert set(result.rows.values()) == {12}
        assert set(result.intervals) == ({"accuracy"} if len(labels) == 1 else set())
    assert measured_rows(results).startswith("12 rows")


def test_files_and_tables_keep_them(tmp_path):
    whole = SubNetworkResult({"encoder": (0, 1)}, 9, {"accuracy": 0.75, "loss": 1.0}, None, 2, {"accuracy": 20}, ENDS)
    bare = SubNetworkResult({"encoder": (0,)}, 5, {"accuracy": 0.5}, None, 1)
    assert read_results(write_results([whole, bare], tmp_path / "results.json")) == [whole, bare]
    assert "rows" not in bare.to_dict()
    assert hash(whole) != hash(bare)
    assert format_score(whole, "accuracy") == "0.7500 (0.531-0.888)"
    assert format_score(bare, "accuracy") == "0.5000"
    assert "| 0.7500 (0.531-0.888) | 1.0000 |" in render_markdown([whole, bare])
    assert measured_rows([whole, bare]) == "20 rows, 95 % intervals in brackets"
    assert measured_rows([bare]) == ""


ENDS = {"accuracy": wilson(0.75, 20)}
