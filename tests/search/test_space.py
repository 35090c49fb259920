"""Which sub-networks there are, checked against all sets of layers, and the rules that ask no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, product
from math import comb
from random import Random, getstate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.keep_layers import evenly_spread, parse_keep_layers
from hf_layerdrop.search import space
from hf_layerdrop.search.space import Layers, Space, distinct, key_of, no_set_of, parse_depth, whole
from hf_layerdrop.search.strategies import STRATEGIES, set_by_rule
from hf_layerdrop.search.strategies.every_other import every_other

DEPTHS = {"encoder": 5, "decoder": 3}
Keys = set[tuple[tuple[int, ...], ...]]


@st.composite
def spaces(draw: Callable) -> Space:
    """Draw a space whose possible sets are a random part of all sets, its whole model always among them."""
    target = {stack: draw(st.integers(1, depth)) for stack, depth in DEPTHS.items()}
    modulus, remainder = draw(st.integers(1, 3)), draw(st.integers(0, 2))

    def can_cut(kept: Layers) -> bool:
        return kept == whole(DEPTHS) or sum(map(sum, kept.values())) % modulus == remainder % modulus

    return Space(DEPTHS, target, draw(st.sampled_from([None, can_cut])))


def all_of(space: Space, counts: Mapping[str, Iterable[int]]) -> Keys:
    """Find all possible sets of so many layers without any help of the space."""
    choices = [
        [kept for count in counts[stack] for kept in combinations(range(depth), count)]
        for stack, depth in space.depths.items()
    ]
    sets = (dict(zip(space.depths, kept, strict=True)) for kept in product(*choices))
    return {tuple(kept.values()) for kept in sets if space.can_cut is None or space.can_cut(kept)}


def keys(sets: Iterable[Layers]) -> Keys:
    sets = list(sets)
    found = {key_of(kept) for kept in sets}
    assert len(found) == len(sets)  # each once
    return found


def weight(kept: Layers, weights: Mapping[str, list[float]]) -> float:
    return sum(weights[stack][layer] for stack, layers in kept.items() for layer in layers)


@given(space=spaces())
def test_every_set_is_there_once_in_walking_order(space: Space) -> None:
    sets = [key_of(kept) for kept in space.every_set()]
    assert sets == sorted(all_of(space, {stack: [count] for stack, count in space.target.items()}))
    assert (
        space.count()
        == len(list(space.conceivable_sets()))
        == comb(5, space.target["encoder"]) * comb(3, space.target["decoder"])
    )


@given(space=spaces(), seed=st.integers(0, 99))
def test_neighbours_are_all_possible_sets_with_one_layer_less_more_or_other(space: Space, seed: int) -> None:
    random = Random(seed)
    counts = {stack: random.randint(1, depth) for stack, depth in DEPTHS.items()}
    kept = {stack: tuple(sorted(random.sample(range(DEPTHS[stack]), count))) for stack, count in counts.items()}
    every = all_of(space, {stack: range(depth + 1) for stack, depth in DEPTHS.items()})

    def differing(removed: int, added: int, stacks: Iterable[str]) -> Keys:
        return {
            key
            for key in every
            for place, stack in enumerate(DEPTHS)
            if stack in stacks
            and all(key[other] == kept[name] for other, name in enumerate(DEPTHS) if name != stack)
            and len(set(kept[stack]) - set(key[place])) == removed
            and len(set(key[place]) - set(kept[stack])) == added
        }

    too_deep = [stack for stack, count in counts.items() if count > space.target[stack]]
    not_deep_enough = [stack for stack, count in counts.items() if count < space.target[stack]]
    assert keys(space.without_one(kept)) == differing(1, 0, too_deep)
    assert keys(space.with_one_more(kept)) == differing(0, 1, not_deep_enough)
    assert keys(space.with_one_swapped(kept)) == differing(1, 1, DEPTHS)


@given(space=spaces(), seed=st.integers(0, 99), count=st.integers(1, 12), known=st.integers(0, 4))
def test_draws_are_different_possible_sets_and_none_of_those_left_out(
    space: Space, seed: int, count: int, known: int
) -> None:
    every = sorted(all_of(space, {stack: [count] for stack, count in space.target.items()}))
    without = set(every[:known])
    before = getstate()
    drawn = space.draw(count, Random(seed), without)
    assert getstate() == before
    assert keys(drawn.sets) <= set(every) - without
    assert len(drawn.sets) == min(count, len(every) - len(without))
    assert drawn == space.draw(count, Random(seed), without)
    assert drawn.sets == space.random_sets(count, Random(seed), without)
    if count >= space.count() - len(without):
        assert drawn.share_possible == len(every) / space.count()


@given(space=spaces(), seed=st.integers(0, 99))
def test_the_heaviest_set_weighs_most_of_all(space: Space, seed: int) -> None:
    random = Random(seed)
    weights = {stack: [random.random() for _ in range(depth)] for stack, depth in DEPTHS.items()}
    every = list(space.every_set())
    heaviest, some = space.heaviest(weights), space.some_set()
    if not every:
        assert heaviest is some is None
        return
    assert weight(heaviest, weights) == pytest.approx(max(weight(kept, weights) for kept in every))
    assert key_of(some) in keys(every)
    assert some == space.spread() or not space.is_possible(space.spread())


@pytest.mark.parametrize("few", [0, 1000])
def test_the_heaviest_set_is_that_of_all_that_can_be_cut(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Also where sets are built up, since there are too many to compare."""
    monkeypatch.setattr(space, "FEW_SETS", few)
    random = Random(few)

    def can_cut(kept: Layers) -> bool:
        return all(place % 3 == layer % 3 for place, layer in enumerate(kept["a"]))

    for _ in range(20):
        weights = {"a": [random.random() for _ in range(9)], "b": [random.random() for _ in range(3)]}
        problem = Space({"a": 9, "b": 3}, {"a": random.randint(1, 9), "b": random.randint(1, 3)}, can_cut)
        total = {weight(kept, weights): kept for kept in problem.every_set()}
        assert problem.heaviest(weights) == total[max(total)]
        assert can_cut(problem.some_set())
    assert Space({"a": 9, "b": 3}, {"a": 2, "b": 1}, lambda _: False).some_set() is None


def test_of_equally_heavy_layers_the_earlier_are_kept() -> None:
    even = Space({"layers": 6}, {"layers": 3})
    assert even.heaviest({"layers": [1.0] * 6}) == {"layers": (0, 1, 2)}
    odd = Space({"layers": 6}, {"layers": 3}, lambda kept: kept["layers"][0] == 1)
    assert odd.heaviest({"layers": [1.0] * 6}) == {"layers": (1, 2, 3)}


def test_a_set_is_found_by_taking_layers_away_where_the_first_ones_are_no_set() -> None:
    tail = Space({"layers": 24}, {"layers": 12}, lambda kept: kept["layers"][-3:] == (21, 22, 23))
    assert tail.is_possible(tail.some_set())
    assert tail.heaviest({"layers": [-layer for layer in range(24)]})["layers"] == (*range(9), 21, 22, 23)


def test_sets_are_built_up_where_there_are_too_many_to_compare() -> None:
    """Every prefix of a possible set is possible: the third layer from the end is never kept, whatever it weighs."""
    built = Space({"layers": 24}, {"layers": 12}, lambda kept: 21 not in kept["layers"])
    kept = built.heaviest({"layers": list(range(24))})
    assert kept["layers"] == (*range(11, 21), 22, 23)


def test_a_set_is_drawn_where_none_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "FEW_SETS", 0)
    monkeypatch.setattr(space, "MAX_SETS", 0)
    odd = Space({"layers": 8}, {"layers": 4}, lambda kept: len(kept["layers"]) == 4 and sum(kept["layers"]) % 2)
    found = odd.heaviest({"layers": [layer % 2 for layer in range(8)]})
    assert odd.is_possible(found)
    assert found == odd.random_sets(1, Random(0))[0]
    assert Space({"layers": 8}, {"layers": 4}, lambda _: False).heaviest({"layers": [1.0] * 8}) is None


def test_draws_tell_the_share_that_is_possible() -> None:
    assert Space({"layers": 24}, {"layers": 12}, lambda _: False).draw(1, Random(0)) == ([], 0)
    half = Space({"layers": 24}, {"layers": 12}, lambda kept: 0 in kept["layers"])
    assert half.draw(200, Random(0)).share_possible == pytest.approx(1 / 2, abs=0.1)
    assert Space({"layers": 24}, {"layers": 12}).draw(200, Random(0)).share_possible == 1
    known = {key_of(kept) for kept in half.random_sets(100, Random(1))}
    again = half.draw(100, Random(1), known)  # begins with the same draws, which are possible, and not among the new
    assert again.share_possible == pytest.approx(1 / 2, abs=0.1)
    assert not known & keys(again.sets)


def test_sets_that_are_rare_are_drawn_all_the_same() -> None:
    rare = Space({"layers": 16}, {"layers": 8}, lambda kept: kept["layers"][:5] == (0, 1, 2, 3, 4))
    assert len(rare.random_sets(30, Random(0))) == 30
    assert len(rare.random_sets(400, Random(0))) == comb(11, 3)
    left = rare.random_sets(400, Random(0), keys(rare.random_sets(60, Random(0))))
    assert len(keys(left)) == comb(11, 3) - 60


def test_random_draws_by_the_seed_alone() -> None:
    space = Space({"encoder": 12, "decoder": 6}, {"encoder": 6, "decoder": 3})
    drawn = space.random_sets(50, Random(3))
    assert drawn == space.random_sets(50, Random(3)) != space.random_sets(50, Random(4))
    assert len(keys(drawn)) == 50


def test_sub_networks_are_told_apart_by_their_layers() -> None:
    one, other = {"encoder": (0, 1), "decoder": (2,)}, {"encoder": (0, 2), "decoder": (2,)}
    assert key_of(one) == ((0, 1), (2,)) != key_of(other)
    assert distinct([one, other, dict(one)]) == [one, other]
    assert whole({"encoder": 3, "decoder": 1}) == {"encoder": (0, 1, 2), "decoder": (0,)}
    assert no_set_of(one, "It has a reason.").endswith("dict. It has a reason.")


# The rules


@given(depths=st.dictionaries(st.sampled_from(["encoder", "decoder"]), st.integers(1, 24), min_size=1), data=st.data())
def test_rules_take_the_layers_they_are_named_for(depths: dict[str, int], data: st.DataObject) -> None:
    target = {stack: data.draw(st.integers(1, depth)) for stack, depth in depths.items()}
    problem = Space(depths, target)
    for stack, depth in depths.items():
        count = target[stack]
        assert set_by_rule("first", None, problem)[stack] == parse_keep_layers(f"first:{count}", {"a": depth})["a"]
        assert set_by_rule("last", None, problem)[stack] == parse_keep_layers(f"last:{count}", {"a": depth})["a"]
        assert set_by_rule("spread", None, problem)[stack] == evenly_spread(count, depth) == problem.spread()[stack]
    assert all(set_by_rule(name, None, problem) is None for name in ("random", "beam", "exhaustive"))
    assert {"first", "last", "spread", "every_other"} < set(STRATEGIES)


@pytest.mark.parametrize("of", [1, 4, 6, 12, 16])
def test_every_other_is_the_papers_formula_where_that_has_the_depth(of: int) -> None:
    reached = {of}
    assert every_other(of, of) == tuple(range(of))
    for count in range(1, of):
        period = of // (of - count)
        if of // period != of - count or period == 1:
            with pytest.raises(KeepLayersError, match="spread") as refused:
                every_other(count, of)
            continue
        kept = every_other(count, of)
        reached.add(count)
        assert kept == parse_keep_layers(f"every_other:{1 / period}", {"encoder": of})["encoder"]
        assert set_by_rule("every_other", None, Space({"a": of, "b": 2}, {"a": count, "b": 1})) == {
            "a": kept,
            "b": (0,),
        }
    if of > 1:
        assert of // 2 in reached
        assert f"only {', '.join(map(str, sorted(reached)))}:" in str(refused.value)


# How many layers of each stack


def test_depths_by_stack() -> None:
    depths = {"encoder": 6, "decoder": 4}
    assert parse_depth("encoder=3", depths) == {"encoder": 3, "decoder": 4}
    assert parse_depth(" encoder = 3 ; decoder=1", depths) == {"encoder": 3, "decoder": 1}
    assert parse_depth({"decoder": "2"}, depths) == {"encoder": 6, "decoder": 2}
    assert parse_depth("4", {"layers": 4}) == parse_depth(" 4 ", {"layers": 4}) == {"layers": 4}
    assert parse_depth(np.int64(1), {"layers": 4}) == parse_depth(1, {"layers": 4}) == {"layers": 1}
    assert parse_depth(3, depths) == parse_depth("3", depths) == {"encoder": 3, "decoder": 3}
    with pytest.raises(KeepLayersError, match="stack 'decoder' has 4 layers"):
        parse_depth(5, depths)
    with pytest.raises(KeepLayersError, match="text=3;vision=2") as refused:
        parse_depth(3, {"text": 6, "vision": 4})
    assert "'text' (6 layers) and 'vision' (4 layers)" in str(refused.value)
    with pytest.raises(KeepLayersError, match="text=1;vision=1"):
        parse_depth(1, {"text": 1, "vision": 2})
    assert Space(depths, {"encoder": 3, "decoder": 2}).spread() == {
        "encoder": evenly_spread(3, 6),
        "decoder": evenly_spread(2, 4),
    }


@pytest.mark.parametrize("depth", [0, 5, -1, "0", "5", "-1", "", "four", "1.0", 2.0, True, None, [2], "9" * 5000, "²"])
def test_what_is_no_depth_of_a_stack_is_refused(depth: object) -> None:
    with pytest.raises(KeepLayersError, match=r"the stack 'layers' has 4 layers: give a whole number from 1 to 4\."):
        parse_depth(depth, {"layers": 4})


def test_a_stack_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeepLayersError, match=r"'middle', but this model has 'layers' \(4 layers\)"):
        parse_depth({"middle": 2}, {"layers": 4})
