"""The page of results: paired differences over rows, readings by margins that were fixed before, costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_layerdrop.errors import LayerDropConfigError
from reproduction.__main__ import run
from reproduction.criteria import AS_GOOD, BETTER, criteria
from reproduction.errors import ReproductionError
from reproduction.journal import SHIPPED_DEPTHS, Journal, read_journal
from reproduction.paired import UNRESOLVED, Resampled, difference
from reproduction.proof import Measured
from reproduction.reading import all_experiments, all_studies
from reproduction.results_page import break_even, write_results
from reproduction.row_scores import RowScores
from reproduction.summary import FAILS, HOLDS, MISSING

FEW = replace(criteria(), resamples=400)
ROWS = 900


def right(share, *, seed=0, rows=ROWS):
    """Scores of rows of which a share is right, the same ones for each share below."""
    order = np.random.default_rng(seed).permutation(rows)
    return RowScores("accuracy", (order < share * rows).astype("uint8").reshape(-1, 1))


def resampled(share, seeds=(0, 1, 2)):
    return Resampled({seed: right(share, seed=seed) for seed in seeds}, FEW.resamples)


@pytest.mark.parametrize(
    ("ours", "own", "share", "verdict"),
    [(0.85, 0.85, 0.5, HOLDS), (0.84, 0.85, 0.5, UNRESOLVED), (0.835, 0.85, 0.3, HOLDS), (0.80, 0.85, 0.3, FAILS)],
)
def test_as_good_is_read_by_the_margin_of_its_depth(ours, own, share, verdict):
    found = difference(resampled(ours), resampled(own), FEW, share=share)
    assert found.verdict == verdict
    assert found.interval.value == pytest.approx(100 * (ours - own), abs=0.2)
    assert found.interval.low <= found.interval.value <= found.interval.high


def test_better_has_no_margin_and_one_seed_resolves_nothing():
    assert difference(resampled(0.9), resampled(0.85), FEW, kind=BETTER).verdict == HOLDS
    assert difference(resampled(0.85), resampled(0.9), FEW, kind=BETTER).verdict == FAILS
    assert difference(resampled(0.85), resampled(0.85), FEW, kind=BETTER).verdict == UNRESOLVED
    assert difference(resampled(0.9, [0]), resampled(0.5, [0]), FEW, kind=BETTER).verdict == UNRESOLVED
    assert difference(resampled(0.9, [0]), resampled(0.5, [1]), FEW).verdict == MISSING


def test_differences_are_paired():
    """Of rows that both get right or wrong alike the interval is narrow, whatever the score."""
    values = right(0.5)
    other = RowScores("accuracy", values.values.copy())
    other.values[:9] ^= 1
    apart = Resampled({0: RowScores("accuracy", values.values[::-1])}, FEW.resamples)
    base = Resampled({0: values}, FEW.resamples)
    near = difference(base, Resampled({0: other}, FEW.resamples), FEW).interval
    far = difference(base, apart, FEW).interval
    assert near.high - near.low < (far.high - far.low) / 3


def test_of_perplexity_less_is_better_and_the_difference_is_a_share():
    def losses(nats):
        rows = np.stack([np.linspace(nats - 1, nats + 1, ROWS) * 10, np.full(ROWS, 10.0)], axis=1)
        return Resampled({seed: RowScores("perplexity", rows) for seed in (0, 1, 2)}, FEW.resamples)

    found = difference(losses(1.99), losses(2.0), FEW, share=0.5)
    assert found.interval.value == pytest.approx(100 * (1 - np.exp(-0.01)))
    assert found.verdict == HOLDS
    assert difference(losses(2.05), losses(2.0), FEW, share=0.5).verdict == FAILS


STUDY = "minilm-sst2"
ACCURACY = {
    "standard": (0.86, 0.8, 0.75, 0.7),
    "depths": (0.86, 0.85, 0.84, 0.7),
    "layerdrop-0.25": (0.84, 0.8, 0.79, 0.7),
}
FORWARDS = {"standard": 6000, "depths": 6010, "layerdrop-0.25": 5990, "alone-4": 4000, "alone-3": 3000, "alone-2": 2000}


def records():
    """A journal of a few arms, with two learning rates of which the second is the worse one."""
    cuts = ("full", "4", "3", "2")
    of_arm = {arm: dict(zip(cuts, values, strict=True)) for arm, values in ACCURACY.items()}
    of_arm |= {"alone-4": {"4": 0.85}, "alone-3": {"3": 0.85}, "alone-2": {"2": 0.79}}
    return [
        {
            "key": f"{arm}-{variant}-{seed}",
            "study": STUDY,
            "size": "mini",
            "arm": f"{arm}-{variant}",
            "seed": seed,
            "steps": 1000,
            "cpu_seconds": 60.0,
            "layer_forwards": FORWARDS[arm],
            "cuts": {
                cut: {
                    "keep_layers": {"encoder": [0]},
                    "metrics": {"accuracy": share - loss},
                    "row_scores": right(share - loss, seed=seed).pack(),
                }
                for cut, share in shares.items()
            },
        }
        for arm, shares in of_arm.items()
        for variant, loss, seeds in (("lr1e-4", 0.0, (0, 1, 2)), ("lr2e-4", 0.02, (0,)))
        for seed in seeds
    ]


def measured():
    return Measured(all_studies()[STUDY], records(), FEW)


def test_each_comparison_that_has_both_sides_is_read_at_each_depth():
    found = {(read.comparison.says, read.cut): read for read in measured().readings()}
    own = {
        cut: found["One training of a list of depths is as good as its own training", cut] for cut in ("4", "3", "2")
    }
    assert own["4"].sides == ("depths@4", "alone-4@4")
    assert [read.difference.verdict for read in own.values()] == [HOLDS, UNRESOLVED, FAILS]
    assert [read.difference.margin for read in own.values()] == [1.0, 1.0, 2.0]
    assert found["LayerDrop regularises (Tables 1, 2)", "full"].sides == ("layerdrop@full", "standard@full")
    assert found["Depth pays", "3"].sides == ("standard@full", "alone-3@3")
    assert not [says for says, _ in found if "distillation" in says or "together" in says]
    assert ("Depth pays", "full") not in found


def test_one_training_against_one_for_each_depth():
    said = break_even(measured())
    assert "costs 1.00 trainings of the whole model" in said
    assert "0.33, 0.83, 1.50, 2.50" in said
    assert "from 3 depths on" in said
    assert "**holds** (40%; in CPU minutes, beside other jobs, 1.0 against 4.0)" in said
    few = [one for one in records() if not one["arm"].startswith("alone-2")]
    assert "not measured yet" in break_even(Measured(all_studies()[STUDY], few, FEW))


def test_the_page_has_scores_readings_costs_and_all_that_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr("reproduction.results_page.criteria", lambda: FEW)
    page, picture = write_results([*all_studies().values()], records(), tmp_path)
    text = page.read_text()
    assert "## MiniLM-L6 on SST-2" in text
    assert "| standard-lr2e-4 |" in text
    assert "0.850 (0." in text
    assert "![Quality against depth" in text
    front = text.partition("## What is compared")[0]
    assert "holds: 6, 4; not resolved: 3; does not hold: 2" in front
    assert "+0.0 points at 6 layers (holds), +0.0 at 4 (holds)" in front
    assert "for 40% of the layer forwards" in front
    assert "so far without" not in front
    assert picture.read_text().startswith("<svg")
    first = text, picture.read_text()
    write_results([*all_studies().values()], records(), tmp_path)
    assert first == (page.read_text(), picture.read_text())


def test_criteria_name_arms_that_there_are():
    arms = {arm for study in all_studies().values() for arm in (*study.arms, *study.variants)}
    roles = {"own", "own-long", "distilled", "layerdrop"}
    for one in criteria().comparisons:
        assert {one.arm, one.than} <= arms | roles
        assert one.of in ("all", "cuts", "full")
        assert one.kind in (AS_GOOD, BETTER)
    ours = [name for one in all_experiments().values() if one.ours for name in one.studies]
    assert {all_studies()[name].metric for name in ours} <= set(criteria().margins)


def test_scores_of_rows_of_another_version_are_refused(tmp_path):
    broken = records()
    broken[0]["cuts"]["full"]["row_scores"] = {"metric": "accuracy", "rows": 3, "data": "x"}
    with pytest.raises(ReproductionError, match="another version"):
        write_results([all_studies()[STUDY]], broken, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "journal.jsonl").write_text('{"version": 99, "key": "a"}\n')
    with pytest.raises(LayerDropConfigError, match="later version"):
        Journal(tmp_path / "journal.jsonl")


def test_the_shipped_page_is_that_of_the_shipped_journal(tmp_path):
    from reproduction.results_page import DOCS, PAGE

    names = [name for one in all_experiments().values() if one.ours for name in one.studies]
    page, *_ = write_results([all_studies()[name] for name in names], read_journal(SHIPPED_DEPTHS), tmp_path)
    assert page.read_text() == (DOCS / PAGE).read_text()


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reproduction.results_page.criteria", lambda: FEW)
    monkeypatch.setattr(
        "reproduction.results_page.write_whole", lambda path, text: (tmp_path / path.name).write_text(text)
    )
    journal = Journal(tmp_path / "journal.jsonl")
    for one in records():
        journal.add(one)
    assert run(["depths", "--page-only", "--output", str(tmp_path)]) == 0
    assert "results.md" in capsys.readouterr().out
    assert "MiniLM-L6 on SST-2" in (tmp_path / "results.md").read_text()
