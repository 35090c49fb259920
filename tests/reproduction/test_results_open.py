"""What is not there yet is said: seeds, settings, studies; and where the best setting is the last one tried."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hf_layerdrop.checkpoints.journal import read_journal
from reproduction.criteria import criteria
from reproduction.proof import Measured
from reproduction.reading import all_studies
from reproduction.results_figure import draw_results
from reproduction.results_page import answer, scores_table, summary_table, tried_table, write_results
from reproduction.row_scores import RowScores

FEW = replace(criteria(), resamples=200)
STUDY = all_studies()["regime-lm-60k"]
CUTS = ("full", "half", "quarter")


def record(arm, seed, nats, cuts=CUTS):
    rows = np.stack([np.linspace(nats - 1, nats + 1, 300) * 10, np.full(300, 10.0)], axis=1)
    scores = RowScores("perplexity", rows)
    found = {"metrics": {"perplexity": float(scores.score()[0])}, "row_scores": scores.pack()}
    costs = {"layer_forwards": 24000, "steps": 3000, "cpu_seconds": 60.0}
    named = {"key": f"{arm}-{seed}", "study": STUDY.name, "size": "mini", "arm": arm, "seed": seed}
    return {**named, **costs, "cuts": dict.fromkeys(cuts, found)}


def measured(*, seeds=(0, 1, 2), settings=("d0", "d0.1", "d0.25", "d0.4")):
    """The standard model with all settings, of which the last is the best, and half of it alone with some."""
    nats = {"d0": 3.0, "d0.1": 2.9, "d0.25": 2.8, "d0.4": 2.7}
    records = [record(f"standard-{name}", seed, nats[name]) for name in nats for seed in seeds]
    records += [record(f"scratch-half-{name}", seed, 2.75, ["half"]) for name in settings for seed in seeds]
    return Measured(STUDY, records, FEW)


def pays(one):
    return {read.cut: read.verdict for read in one.readings("pays")}


def test_a_reading_waits_for_seeds_and_for_settings_that_the_other_side_had():
    assert pays(measured()) == {"half": "holds"}
    assert pays(measured(seeds=(0, 1))) == {"half": "open, 2 of 3 seeds"}
    assert pays(measured(settings=("d0",))) == {"half": "open, 1 of 4 settings"}


def test_tables_say_what_is_missing():
    short = measured(seeds=(0,), settings=("d0", "d0.1"))
    assert [row[-1] for row in scores_table(short).rows] == ["0; without 1, 2", "0; without 1, 2; 2 of 4 settings"]
    assert [row[-1] for row in scores_table(measured()).rows] == ["0, 1, 2", "0, 1, 2"]
    assert summary_table([short]).rows[0][1] == "open, 2 of 4 settings: 4"


def test_the_answer_has_differences_and_what_is_to_come():
    ours = [record(f"depths-{name}", 0, 2.7) for name in ("d0", "d0.1", "d0.25", "d0.4")]
    one = Measured(STUDY, [*measured(seeds=(0,)).records, *ours], FEW)
    said = answer(one)
    assert "so far without seeds 1, 2" in said
    assert "+0.0 % at 8 layers, +4.9 at 4." in said


def test_a_best_setting_at_the_end_of_those_tried_is_marked():
    chosen = {row[0]: row[1] for row in tried_table(measured()).rows}
    assert chosen["standard-d0.4"] == "yes, the last one"
    assert chosen["standard-d0"] == ""
    assert chosen["scratch-half-d0"] == "yes"


def test_the_page_names_studies_that_were_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("reproduction.results_page.criteria", lambda: FEW)
    page, *_ = write_results([STUDY, all_studies()["minilm-mrpc"]], measured().records, tmp_path)
    assert "Not run yet: MiniLM-L6 on MRPC." in page.read_text()


def test_the_plot_leaves_out_arms_with_fewer_settings_and_has_hollow_marks_without_all_seeds():
    def lines(one):
        handles, labels = draw_results([one]).axes[0].get_legend_handles_labels()
        return {label: handle[0].get_markerfacecolor() for handle, label in zip(handles, labels, strict=True)}

    assert set(lines(measured())) == {"standard, then cut", "each depth trained alone"}
    assert "white" not in lines(measured()).values()
    assert set(lines(measured(seeds=(0,))).values()) == {"white"}
    behind = draw_results([measured(settings=("d0",))]).axes[0]
    alone = dict(zip(*reversed(behind.get_legend_handles_labels()), strict=True))["each depth trained alone"]
    assert list(alone[0].get_xdata()) == [8]


def test_a_line_torn_after_its_first_byte_is_no_other_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"version": 1, "key": "a"}\n{')
    assert read_journal(path, "runs", ["key"]) == [{"key": "a"}]
