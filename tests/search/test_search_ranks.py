"""Two processes search and measure together: the record is that of one, each does its part, and they end together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import build
from hf_layerdrop.evaluation.divided import shares_of
from hf_layerdrop.search.space import Space
from ranks import SUPPORT, found_by_ranks
from searching import BERT, search
from warm import run_python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return found_by_ranks(SUPPORT / "search_ranks_worker.py", str(folder))


COMPARED = [
    "exhaustive, BertForSequenceClassification",
    "exhaustive, BartForConditionalGeneration",
    "beam, BertForSequenceClassification",
    "leave_one_out, BertForSequenceClassification",
    "spread, BertForSequenceClassification",
    "trainer",
    "function",
    "depths",
    "depths by trainer",
]


@pytest.mark.parametrize("case", COMPARED)
def test_the_record_is_that_of_one_process_and_each_rank_does_a_part(found: dict[str, Any], case: str) -> None:
    ranks = found[case]
    assert [rank["same"] for rank in ranks] == [True, True]
    assert ranks[0]["found"] == ranks[1]["found"]
    assert max(rank["runs"] for rank in ranks) < ranks[0]["runs alone"]
    if case != "spread, BertForSequenceClassification":  # a rank without a candidate waits
        assert max(rank["runs"] for rank in ranks) <= 0.85 * ranks[0]["runs alone"]


def test_rank_0_measures_the_time_of_a_forward_for_all(found: dict[str, Any]) -> None:
    assert found["budget"][0] == found["budget"][1]
    assert found["budget"][0]["latency"] > 0


def test_a_loader_that_shuffles_gives_all_ranks_the_same_batches(found: dict[str, Any]) -> None:
    ranks = found["shuffled"]
    assert ranks[0]["found"] == ranks[1]["found"]
    assert ranks[0]["same"]
    assert ranks[1]["same"]  # as nobody moves its random stream


def test_a_callback_leaves_the_division_of_batches_to_trainer(found: dict[str, Any]) -> None:
    ranks = found["depths within an evaluation"]
    assert ranks[0] == ranks[1]
    assert ranks[0]["accuracy"] == ranks[0]["depth_4_accuracy"] != ranks[0]["depth_2_accuracy"]
    by_depth = {len(one["keep_layers"]["encoder"]): one for one in found["depths by trainer"][0]["found"]}
    assert ranks[0]["accuracy"] == by_depth[4]["metrics"]["accuracy"]  # of 27 rows, without those that fill a batch up
    assert ranks[0]["loss"]
    assert ranks[0]["runs"] == 3 * 4  # batches of four rows on each rank


def test_one_journal_that_any_number_of_processes_goes_on_from(found: dict[str, Any], folder: Path) -> None:
    ranks = found["journal"]
    assert all(rank["same"] for rank in ranks)
    assert [rank["from journal"] for rank in ranks] == [[0, 6, 3]] * 2
    assert len({score for rank in ranks for score in rank["scores"]}) == 1
    for name in ("both", "half"):
        lines = (folder / f"{name}.journal").read_text().splitlines()
        assert len({json.dumps(json.loads(line)["keep_layers"]) for line in lines}) == len(lines) == 7
    again = search(build(BERT), strategy="exhaustive", journal=folder / "both.journal")
    assert again.from_journal == 6
    assert again.score == ranks[0]["scores"][0]


@pytest.mark.parametrize(
    ("case", "others", "own"),
    [
        (
            "failure",
            "LayerDropStateError: Rank 1 failed, and all ranks end with it: ValueError: no more.",
            "ValueError",
        ),
        ("interrupt", "KeyboardInterrupt: ", "KeyboardInterrupt"),
    ],
)
def test_a_rank_that_fails_ends_all_and_leaves_a_journal_to_go_on_from(
    found: dict[str, Any], folder: Path, case: str, others: str, own: str
) -> None:
    ranks = found[case]
    assert ranks[0]["said"] == others
    assert ranks[1]["said"] == f"{own}: no more"
    assert [rank["from journal"] for rank in ranks] == [ranks[0]["kept"] - 1] * 2
    assert ranks[0]["kept"] > 1
    assert ranks[0]["score"] == ranks[1]["score"]
    file = folder / f"{own}.journal"
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_failure_after_the_last_result_is_told_too(found: dict[str, Any]) -> None:
    first, second = found["failure at the end"]
    assert first["said"] == "ValueError: the last line"
    assert second["said"].startswith("LayerDropStateError: Rank 0 failed")


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("other models", "have different models"),
        ("other data", "were asked for different work"),
        ("other settings", "were asked for different work"),
    ],
)
def test_ranks_that_differ_are_refused(found: dict[str, Any], case: str, sentence: str) -> None:
    assert all(rank["said"].startswith("LayerDropStateError: Ranks 0 and 1 ") for rank in found[case])
    assert all(sentence in rank["said"] for rank in found[case])


def test_a_rank_that_does_not_come_is_not_waited_for_without_end(found: dict[str, Any]) -> None:
    first, second = found["absence"]
    assert "Rank 1 did not come" in first["said"]
    assert first["after"] == second["after"]


def test_a_rank_alone_is_no_launch(tmp_path: Path) -> None:
    """As some schedulers set it for any job."""
    journal = str(tmp_path / "journal")
    code = (
        "from conftest import build; from searching import BERT, search; "
        f"print(search(build(BERT), journal={journal!r}).evaluations)"
    )
    done = run_python("-c", code, environments=[{"RANK": "3"}], seconds=120)
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout.splitlines()[-1]) > 0
    assert Path(journal).read_text()


def test_shares_are_contiguous_and_even() -> None:
    walk = list(Space({"encoder": 12}, {"encoder": 6}).every_set())
    for ranks in (2, 3, 8):
        shares = shares_of(walk, ranks, shares_prefixes=True)
        assert [begin for begin, _ in shares] == [0, *(end for _, end in shares[:-1])]
        assert shares[-1][1] == len(walk)
        sizes = [end - begin for begin, end in shares]
        assert max(sizes) < 1.2 * len(walk) / ranks
    few = shares_of(walk[:2], 5, shares_prefixes=False)
    assert [end - begin for begin, end in few] == [1, 1, 0, 0, 0]
    assert shares_of([], 2, shares_prefixes=True) == [(0, 0), (0, 0)]


def test_a_share_has_as_many_layers_to_run_as_the_others_where_the_first_sub_networks_share_most() -> None:
    walk = [{"encoder": tuple(layer for layer in range(12) if layer != left)} for left in reversed(range(12))]
    (_, end), _ = shares_of(walk, 2, shares_prefixes=True)
    assert end > 6  # the first one is dear, those after it are cheap
