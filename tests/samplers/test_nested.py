"""Nested sets: one set for each depth, each within the next larger, as evenly spread as that allows."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.keep_layers import choice_behind, evenly_spread, parse_keep_layers
from hf_layerdrop.samplers.nested import nested_order, nested_set


@given(of=st.integers(1, 100))
def test_each_set_has_its_depth_and_lies_in_the_next_larger_one(of):
    sets = [nested_set(depth, of) for depth in range(1, of + 1)]
    assert [len(kept) for kept in sets] == list(range(1, of + 1))
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(sets))
    assert all(list(kept) == sorted(kept) for kept in sets)
    assert sets[-1] == tuple(range(of))


@given(of=st.integers(2, 100), data=st.data())
def test_they_hold_both_ends_and_no_gap_is_twice_another(of, data):
    kept = nested_set(data.draw(st.integers(2, of)), of)
    assert (kept[0], kept[-1]) == (0, of - 1)
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) <= 2 * min(gaps) + 1  # halves of an odd run differ by one


def test_twelve_layers_in_their_order():
    assert nested_order(12) == (11, 0, 5, 8, 2, 3, 6, 9, 1, 4, 7, 10)
    assert nested_set(6, 12) == (0, 2, 3, 5, 8, 11) != evenly_spread(6, 12)
    assert nested_set(1, 12) == evenly_spread(1, 12) == (11,)


@pytest.mark.parametrize("depth", range(1, 7))
def test_keep_layers_names_them(depth):
    kept = parse_keep_layers(f"nested:{depth}", {"encoder": 6, "decoder": 6})
    assert kept == dict.fromkeys(("encoder", "decoder"), nested_set(depth, 6))
    assert choice_behind(f"nested:{depth}") == {"strategy": "nested"}


@pytest.mark.parametrize("spec", ["nested", "nested:0", "nested:7", "nested:x"])
def test_what_names_no_depth_is_refused(spec):
    with pytest.raises(KeepLayersError, match="nested:n"):
        parse_keep_layers(spec, {"layers": 6})
