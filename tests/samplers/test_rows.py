"""Which rows of a batch a layer runs on: pure functions of a counter, like all draws."""

from __future__ import annotations

import copy
import json
import pickle
import random

import pytest

from hf_layerdrop import LayerDropConfig
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.rows import RowMask, kept_rows, rows_run

COUNTER = (1, 2, 0, 3, "encoder")


@pytest.mark.parametrize(
    ("rows", "rate", "run"),
    [
        (10, 0.2, 8),
        (8, 0.2, 6),
        (8, 0.5, 4),
        (3, 0.5, 2),
        (32, 0.05, 30),
        (7, 0, 7),
        (7, 1, 0),
        (1, 0.9, 1),
        (4, 0.99, 1),
    ],
)
def test_a_layer_runs_on_a_fixed_number_of_rows_and_below_rate_1_on_one_at_least(rows, rate, run):
    assert rows_run(rows, rate) == run
    assert [len(kept) for kept in RowMask((rate,) * 5, COUNTER).kept(rows)] == [run] * 5


def test_rows_are_drawn_as_they_were_when_this_was_written():
    assert kept_rows(COUNTER, 0, 8, 4) == GOLDEN[0]
    assert kept_rows(COUNTER, 1, 8, 4) == GOLDEN[1]
    assert RowMask((0.0, 0.25, 0.5, 1.0), (0, 0, 0, 0, "decoder")).kept(6) == GOLDEN[2]


GOLDEN = ((0, 1, 3, 5), (3, 5, 6, 7), ((0, 1, 2, 3, 4, 5), (0, 2, 3, 5), (2, 3, 4), ()))


@pytest.mark.parametrize("place", range(5))
def test_other_rows_are_drawn_at_any_other_place_of_the_counter(place):
    other = list(COUNTER)
    other[place] = "decoder" if place == 4 else COUNTER[place] + 1
    assert RowMask((0.5,) * 4, tuple(other)).kept(16) != RowMask((0.5,) * 4, COUNTER).kept(16)


def test_layers_drop_other_rows_and_every_row_as_often():
    counts = [[0] * 5 for _ in range(3)]
    together = 0
    for step in range(3000):
        kept = RowMask((0.4, 0.4, 0.2), (0, step, 0, 0, "layers")).kept(5)
        together += kept[0] == kept[1]
        for layer, rows in enumerate(kept):
            assert list(rows) == sorted(set(rows))
            for row in rows:
                counts[layer][row] += 1
    assert all(
        abs(count / 3000 - share) < 0.03
        for layer, share in zip(counts, (0.6, 0.6, 0.8), strict=True)
        for count in layer
    )
    assert abs(together / 3000 - 0.1) < 0.03  # 3 of 5 rows are one of ten sets


def test_a_higher_rate_drops_more_rows_beside_those_that_a_lower_one_drops():
    for step in range(20):
        low, high = (RowMask((rate,), (0, step, 0, 0, "layers")).kept(12)[0] for rate in (0.25, 0.5))
        assert set(high) < set(low)


def test_no_global_generator_is_read_or_advanced():
    random.seed(0)
    state = random.getstate()
    first = RowMask((0.5,), COUNTER).kept(64)
    assert random.getstate() == state
    random.seed(5)
    assert RowMask((0.5,), COUNTER).kept(64) == first


def test_a_mask_of_rows_is_a_mask_and_its_copies_draw_alike():
    mask = RowMask((0.0, 0.5, 1.0), COUNTER)
    assert mask == (True, True, False)
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert other == mask
        assert other.kept(9) == mask.kept(9)


def test_a_layer_of_rate_1_that_runs_all_the_same_runs_on_all_rows():
    assert RowMask((0.5, 1.0), COUNTER).running((True, True)).kept(4)[1] == (0, 1, 2, 3)


def test_the_setting_is_read_back_from_json():
    config = LayerDropConfig(0.2, granularity="row", shape="linear", seed=3, never_drop=(0,))
    assert LayerDropConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LayerDropConfig.for_depth(4, of=8, granularity="row").granularity == "row"
    assert LayerDropConfig(0.2).granularity == "batch"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"granularity": "token"}, ["'token'", "'batch' or 'row'"]),
        ({"granularity": "row", "sampler": "depth"}, ["sampler='depth'", "sampler='bernoulli'"]),
        ({"granularity": "row", "sampler": "learned"}, ["sampler='learned'", "granularity='batch'"]),
        ({"granularity": "row", "execution": "mask"}, ["execution='mask'", "execution='skip'"]),
        ({"granularity": "row", "structure": "ffn"}, ["structure='ffn'", "structure='layer'"]),
        ({"granularity": "row", "structure": ("head", "layer")}, ["head", "structure='layer'"]),
    ],
)
def test_what_rows_cannot_be_combined_with_is_refused_in_one_sentence(settings, said):
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropConfig(0.2, **settings)
    assert all(part in str(error.value) for part in said), error.value
    assert "\n" not in str(error.value)
