"""Which recommended set is the best and which the fastest, what a cut leaves of them, and how tables are joined."""

from __future__ import annotations

import json
import random

import pytest
from pydantic import ValidationError

from hf_layerdrop import KeepLayersError, parse_keep_layers, read_recommended, write_recommended
from hf_layerdrop.checkpoints.recommended import MeasuredWith, RecommendedSets
from hf_layerdrop.samplers.keep_layers import choice_behind, resolve
from tables import SCORES, one_set, table_for

DEPTHS = {"encoder": 4}


def kept(spec, table, depths=DEPTHS):
    found = parse_keep_layers(spec, depths, recommended=table)
    return found["encoder"] if len(found) == 1 else found


def test_the_best_set_of_a_depth_need_not_be_the_evenly_spread_one():
    table = table_for()
    assert [kept(f"best:{depth}", table) for depth in (4, 3, 2, 1)] == [(0, 1, 2, 3), (0, 1, 3), (1, 2), (3,)]
    assert kept(2, table) == kept("2", table) == (0, 3)  # a bare depth stays evenly spread


@pytest.mark.parametrize("metric", ["loss", "perplexity", "wer"])
def test_of_an_error_the_lowest_is_the_best(metric):
    table = table_for(metric=metric, greater_is_better=False)
    assert kept("best:2", table) == (0, 3)
    assert kept("best:1", table) == (0,)


def test_the_fastest_is_within_a_share_of_the_whole_score():
    table = table_for()
    chosen = {share: kept(f"fastest:{share}", table) for share in (1, 0.995, 0.99, 0.88, 0.5)}
    assert chosen == {1: (0, 1, 2, 3), 0.995: (0, 1, 2, 3), 0.99: (0, 1, 3), 0.88: (1, 2), 0.5: (3,)}


def test_the_fastest_of_an_error_may_be_a_share_above_it():
    scores = {(0, 1, 2, 3): 1.0, (0, 1, 3): 1.009, (0, 3): 1.02, (0,): 0.5}
    table = table_for(scores=scores, metric="loss", greater_is_better=False)
    assert kept("fastest:0.99", table) == (0,)
    without = table.model_copy(update={"sets": table.sets[:3]})
    assert kept("fastest:0.99", without) == (0, 1, 3)


def test_scores_below_zero_have_a_room_too():
    table = table_for(scores={(0, 1, 2, 3): -0.5, (0, 3): -0.52, (0,): -0.6})
    assert kept("fastest:0.95", table) == (0, 3)


def test_without_times_of_one_machine_the_smallest_is_the_fastest():
    slow = {(0, 1, 2, 3): 0.1, (0, 1, 3): 0.5, (0, 3): 0.5, (1, 2): 0.5, (0,): 0.5, (3,): 0.6}
    timed = table_for(seconds=slow)
    assert kept("fastest:0.5", timed) == (0, 1, 2, 3)
    assert kept("fastest:0.5", table_for(seconds=None)) == (3,)
    elsewhere = [one.model_copy(update={"machine": f"machine {place}"}) for place, one in enumerate(timed.sets)]
    assert kept("fastest:0.5", timed.model_copy(update={"sets": elsewhere})) == (3,)


def test_equal_scores_are_decided_by_the_loss():
    sets = [one_set({"encoder": [layer]}, 0.5) for layer in range(4)]
    sets = [one.model_copy(update={"metrics": {**one.metrics, "loss": abs(2 - at)}}) for at, one in enumerate(sets)]
    assert kept("best:1", RecommendedSets(depths=DEPTHS, metric="accuracy", sets=sets)) == (2,)


def test_a_score_that_is_no_number_is_never_chosen():
    table = table_for(scores={**SCORES, (1, 2): None})
    assert kept("best:2", table) == (0, 3)


def test_the_order_of_the_sets_says_nothing():
    table = table_for()
    for seed in range(5):
        sets = random.Random(seed).sample(table.sets, len(table.sets))
        mixed = table.model_copy(update={"sets": sets})
        for spec in ("best:2", "best:1", "fastest:0.99", "fastest:0.5"):
            assert kept(spec, mixed) == kept(spec, table)


def test_several_stacks_take_one_depth_or_each_its_own():
    both = {"encoder": 4, "decoder": 4}
    sets = [one_set({"encoder": enc, "decoder": dec}, score) for enc, dec, score in PAIRS]
    table = RecommendedSets(depths=both, metric="accuracy", sets=sets)
    assert kept("best:2", table, both) == {"encoder": (1, 2), "decoder": (0, 1)}
    assert kept("encoder=best:2;decoder=best:1", table, both) == {"encoder": (0, 3), "decoder": (2,)}
    assert kept({"decoder": "best:1"}, table, both) == {"encoder": (0, 1, 2, 3), "decoder": (0,)}
    assert kept("fastest:0.5", table, both) == {"encoder": (0, 3), "decoder": (2,)}


PAIRS = [
    ([0, 1, 2, 3], [0, 1, 2, 3], 0.9),
    ([0, 3], [0, 3], 0.5),
    ([1, 2], [0, 1], 0.6),
    ([0, 3], [2], 0.45),
    ([0, 1, 2, 3], [0], 0.7),
]
WRONG = {
    "best:7": "from 1 to 4",
    "best:0": "from 1 to 4",
    "best:": "best:n",
    "best": "best:n",
    "best:two": "best:n",
    "best:-1": "best:n",
    "fastest:0": "above 0 and at most 1",
    "fastest:1.5": "above 0 and at most 1",
    "fastest:99%": "above 0 and at most 1",
    "fastest:nan": "above 0 and at most 1",
    "fastest": "above 0 and at most 1",
    "bset:2": "did you mean 'best'",
    "fastets:0.9": "did you mean 'fastest'",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_cannot_be_read_is_said(spec):
    with pytest.raises(KeepLayersError, match=WRONG[spec]):
        kept(spec, table_for())


def test_what_was_not_measured_is_said():
    table = table_for(scores={(0, 3): 0.5, (0,): 0.25})
    with pytest.raises(KeepLayersError, match="keeps 3 layers of the encoder; measured were 2 layers of the enc"):
        kept("best:3", table)
    with pytest.raises(KeepLayersError, match="whole model's accuracy is not among"):
        kept("fastest:0.9", table)
    with pytest.raises(KeepLayersError, match="none is at hand"):
        parse_keep_layers("best:2", DEPTHS)
    with pytest.raises(KeepLayersError, match="ask for a depth of each stack"):
        kept({"encoder": "best:2", "decoder": 2}, table, {"encoder": 4, "decoder": 4})
    with pytest.raises(KeepLayersError, match="of one stack"):
        kept({"encoder": "fastest:0.9"}, table, {"encoder": 4, "decoder": 4})
    with pytest.raises(KeepLayersError, match="say which"):
        kept("best:2", table, {"text": 4, "vision": 4})


@pytest.mark.parametrize("depths", [{"encoder": 6}, {"layers": 5}, {"encoder": 4, "decoder": 4}, {"text": 4}])
def test_a_table_of_another_model_is_refused(depths):
    with pytest.raises(KeepLayersError, match="belong to another checkpoint"):
        table_for().check(depths)
    for spec in ("fastest:0.9", dict.fromkeys(depths, "best:1")):
        with pytest.raises(KeepLayersError, match="belong to another checkpoint"):
            parse_keep_layers(spec, depths, recommended=table_for())


def test_a_choice_says_how_it_was_made():
    chosen = resolve("best:2", DEPTHS, table_for())
    assert choice_behind(chosen) == {"strategy": "best:2", "metric": "accuracy", "score": 0.8}
    sets = [one.model_copy(update={"chosen_by": "beam"}) for one in table_for().sets]
    chosen = resolve("best:2", DEPTHS, table_for().model_copy(update={"sets": sets}))
    assert choice_behind(chosen)["strategy"] == "beam"


def test_nothing_else_reads_the_table(tmp_path):
    (tmp_path / "layerdrop.json").write_text("broken")
    for spec in (2, "2", "::2", [0, 1], "first:2", "all", None, {"encoder": 3}):
        parse_keep_layers(spec, DEPTHS, recommended=tmp_path)
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_keep_layers("best:2", DEPTHS, recommended=tmp_path)


# --- Cuts -----------------------------------------------------------------------------------------


def test_a_cut_has_the_sets_within_it_by_its_own_numbers():
    left = table_for().cut({"encoder": (0, 1, 3)})
    assert left.depths == {"encoder": 3}
    assert {tuple(one.keep_layers["encoder"]): left.score(one) for one in left.sets} == {
        (0, 1, 2): 0.895,
        (0, 2): 0.6,
        (0,): 0.5,
        (2,): 0.55,
    }
    assert left.whole is not None
    assert RecommendedSets.model_validate(left.model_dump()) == left
    assert table_for().cut({"encoder": (2,)}) is None


def test_cutting_twice_is_cutting_once():
    twice = table_for().cut({"encoder": (0, 1, 3)}).cut({"encoder": (0, 2)})
    assert twice == table_for().cut({"encoder": (0, 3)})


# --- Files ----------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    measured = MeasuredWith(task="sst2", dataset="nyu-mll/glue", text_columns=["sentence"], max_length=64)
    table = table_for(measured_with=measured, scores={**SCORES, (2,): None}, seconds=None)
    assert write_recommended(table, tmp_path) == tmp_path / "layerdrop.json"
    assert read_recommended(tmp_path) == read_recommended(tmp_path / "layerdrop.json") == table
    assert json.loads((tmp_path / "layerdrop.json").read_text())["version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["layerdrop.json"]


def test_a_checkpoint_without_a_table_says_what_to_do(tmp_path):
    with pytest.raises(KeepLayersError, match="hf-layerdrop sweep"):
        read_recommended(tmp_path)


def test_records_do_not_change():
    table = table_for()
    with pytest.raises(ValidationError):
        table.metric = "f1"


# --- Joining --------------------------------------------------------------------------------------


def test_later_sets_join_earlier_ones_of_the_same_measurement():
    earlier = table_for(scores={(0, 1, 2, 3): 0.9, (0, 3): 0.6})
    now = table_for(scores={(0, 3): 0.6, (1, 2): 0.8})
    joined = now.joined(earlier)
    assert {tuple(one.keep_layers["encoder"]) for one in joined.sets} == {(0, 1, 2, 3), (0, 3), (1, 2)}


def test_a_set_that_a_search_found_keeps_its_finder():
    found = table_for(scores={(1, 2): 0.8})
    found = found.model_copy(update={"sets": [found.sets[0].model_copy(update={"chosen_by": "beam"})]})
    assert table_for().joined(found).best({"encoder": 2}).chosen_by == "beam"


@pytest.mark.parametrize(
    "other",
    [
        table_for(measured_with=MeasuredWith(task="rte"), scores={(0, 1): 1.0}),
        table_for(metric="f1", scores={(0, 1): 1.0}),
        table_for(("layers",), scores={(0, 1): 1.0}),
        table_for(scores={(0, 1): 1.0, (0, 3): 0.7}),
    ],
    ids=["data", "metric", "stacks", "weights"],
)
def test_what_cannot_be_compared_gives_way(other):
    assert table_for().joined(other) == table_for()
