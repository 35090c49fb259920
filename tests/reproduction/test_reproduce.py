"""python -m reproduction: experiments as data, one engine, a journal that nothing is trained twice with."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from hf_layerdrop.errors import LayerDropConfigError
from reproduction.__main__ import run
from reproduction.engine import Engine
from reproduction.errors import ReproductionError
from reproduction.experiment import Claim, Side
from reproduction.journal import Journal, read_journal
from reproduction.page import write_pages
from reproduction.paper import estimate_runs
from reproduction.plan import plan_runs
from reproduction.reading import all_experiments, all_studies, read_experiment, read_study
from reproduction.rows import Source
from reproduction.shared_inputs import described
from reproduction.summary import (
    FAILS,
    HOLDS,
    MISSING,
    UNRESOLVED,
    precondition,
    read_claim,
    read_experiment_claims,
)

PAPER = [f"table-{n}" for n in (1, 2, 3, 4, 7, 8)] + [f"figure-{n}" for n in range(2, 9)]
TINY = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "per_device_eval_batch_size": 2}

CUTS = {
    "full": "all",
    "half": 2,
    "quarter": 1,
    "first-half": "first:2",
    "last-half": "last:2",
    "without-middle": [0, 3],
}
GENERATED = {"full": "all", "half": "decoder=2", "quarter": "decoder=1"}
FIRST = CUTS | {"quarter": "first:1"}  # ModernBERT must keep its layer 0


@pytest.fixture
def source(tmp_path):
    """Rows of three tasks, made here: words that follow each other, and their translation."""
    words = random.Random(0).choices(["red", "green", "blue", "one", "two"], k=400)
    texts = [" ".join(words[begin : begin + 8]) + " .\n" for begin in range(0, 400, 8)]
    rows = {
        "wikitext2": [{"text": text} for text in texts],
        "multi30k_de_en": [{"de": text.strip(), "en": text.strip().upper()} for text in texts],
        "sst2": [{"sentence": text.strip(), "label": int("red" in text)} for text in texts],
    }
    for name, data in rows.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, part in (("train", data), ("validation", data[:6])):
            file = tmp_path / "data" / name / f"{split}.jsonl"
            file.write_text("\n".join(map(json.dumps, part)))
    return Source(data_dir=tmp_path / "data")


def tiny(name):
    """A study of the package with a model and a training of seconds."""
    study = all_studies()[name]
    family = study.sizes["mini"].model.partition("-")[0]
    size = study.sizes["mini"]
    size = replace(
        size,
        model=f"{family}-4x16",
        vocab_size=400,
        max_length=16,
        max_target_length=8,
        importance=3,
        training={**size.training, **TINY},
        cuts={name: {"bart": GENERATED, "modernbert": FIRST}.get(family, CUTS)[name] for name in size.cuts},
    )
    return replace(study, sizes={"mini": size})


def tiny_runs(experiment, *names, **choice):
    studies = {name: tiny(name) for name in names}
    found = all_experiments()[experiment]
    found = replace(found, studies=tuple(name for name in found.studies if name in names))
    return plan_runs(found, studies, **choice)


def test_every_table_and_figure_is_there_at_both_sizes():
    assert set(PAPER) <= set(all_experiments())
    for experiment in all_experiments().values():
        for size in ("mini",) if experiment.ours else ("mini", "paper"):
            runs = plan_runs(experiment, all_studies(), size=size)
            assert runs
            known = {(one.name, one.seed) for one in runs}
            assert len(known) == len(runs)
            for place, one in enumerate(runs):
                assert one.source is None or one.source in runs[:place]


def test_where_a_claim_is_about_depth_what_tells_whether_it_pays_comes_first():
    runs = plan_runs(all_experiments()["figure-6"], all_studies(), seeds=[0])
    assert [run.arm.name for run in runs[:3]] == ["standard", "scratch-half", "scratch-quarter"]


def test_a_run_is_known_by_all_that_decides_its_numbers():
    first, *_ = tiny_runs("table-2", "lm", seeds=[0])
    same = replace(first)
    others = [
        replace(first, seed=1),
        replace(first, short=True),
        replace(first, arm=replace(first.arm, rate=0.3)),
        replace(first, arm=replace(first.arm, structure="head")),
        replace(first, size=replace(first.size, training={**first.size.training, "max_steps": 5})),
        replace(first, source=same),
    ]
    keys = [run.key(lambda run: "rows") for run in (first, *others)] + [first.key(lambda run: "other rows")]
    assert len(set(keys)) == len(keys)
    assert same.key(lambda run: "rows") == keys[0]


def test_the_warmup_of_a_shorter_arm_is_shorter_too():
    """Else an arm of a tenth of the steps would end before its learning rate falls."""
    runs = {run.arm.name: run for run in plan_runs(all_experiments()["table-8"], all_studies(), seeds=[0])}
    whole, part = runs["layerdrop-0.2"], runs["finetuned-half"]
    assert whole.training == whole.size.training  # so that the journal knows it by the same key as before
    assert whole.training["max_steps"] == 10 * part.training["max_steps"]
    assert whole.training["warmup_steps"] == 10 * part.training["warmup_steps"] > 0
    assert part.settings()["settings"]["training"] == part.training


def test_tables_and_figures_share_their_runs(source, tmp_path):
    said: list[str] = []
    engine = Engine(tmp_path / "out", source, say=said.append)
    records = engine.train(tiny_runs("figure-2", "lm", seeds=[0]))
    assert len(records) == 8
    whole = records[0]
    assert whole["arm"] == "standard"
    assert whole["layer_forwards"] == 4 * 4
    assert whole["steps"] == 4
    assert whole["cpu_seconds"] > 0
    assert whole["cuts"]["half"]["keep_layers"] == {"layers": [0, 3]}
    by_arm = {record["arm"]: record for record in records}
    assert by_arm["scratch-quarter"]["layer_forwards"] == 4
    assert by_arm["distill-half"]["teacher_layer_forwards"] == 16
    assert by_arm["distill-half"]["layer_forwards"] == 24
    assert by_arm["layerdrop-0.2"]["layer_forwards"] < 16
    assert list(by_arm["distill-half"]["cuts"]) == ["half"]
    assert by_arm["scratch-half"]["cuts"]["half"]["parameters"] == whole["cuts"]["half"]["parameters"]
    assert len(by_arm["layerdrop-0.2"]["importance"]["scores"]["layers"]) == 4
    said.clear()
    again = Engine(tmp_path / "out", source, say=said.append)
    assert again.train(tiny_runs("figure-2", "lm", seeds=[0])) == json.loads(json.dumps(records))
    assert not said
    assert len(again.train(tiny_runs("table-8", "lm", seeds=[0]))) == 5
    assert [line.partition(",")[0] for line in said] == ["lm/finetuned-half"] * 2


def test_other_structures_are_dropped_and_measured_alike(source, tmp_path):
    records = Engine(tmp_path, source).train(tiny_runs("figure-4-structures", "lm", seeds=[0]))
    assert [record["arm"] for record in records] == list(all_experiments()["figure-4-structures"].arms)
    scores = {record["arm"]: record["cuts"]["full"]["metrics"]["perplexity"] for record in records}
    assert len(set(scores.values())) == len(scores)  # the same model and rows, and something else dropped of it
    forwards = {record["arm"]: record["layer_forwards"] for record in records}
    assert forwards["heads-0.2"] == forwards["standard"] > forwards["layerdrop-0.2"]


def test_runs_that_drop_layers_are_known_as_before_there_were_other_structures():
    standard, *_, heads = tiny_runs("figure-4-structures", "lm", seeds=[0])
    assert "structure" not in standard.settings()["arm"]
    assert heads.settings()["arm"]["structure"] == ("head", "attention", "ffn")


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(source, tmp_path):
    (one,) = tiny_runs("table-2", "lm", seeds=[0], arms=["layerdrop-0.2"])
    expected = Engine(tmp_path / "whole", source).train_one(one)

    class Killed(Exception):
        pass

    from reproduction.clock import StepClock

    steps: list[int] = []

    class Interrupting(StepClock):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            steps.append(state.global_step)
            if len(steps) == 3:
                raise Killed

    Interrupting.__name__ = "StepClock"
    engine = Engine(tmp_path / "killed", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reproduction.training.StepClock", Interrupting)
        with pytest.raises(Killed):
            engine.train_one(one)
        assert engine.missing([one]) == [one]
        found = Engine(tmp_path / "killed", source).train_one(one)
    assert steps == [1, 2, 3, 3, 4]
    for name in ("cuts", "layer_forwards", "steps", "importance"):
        assert found[name] == expected[name]
    assert not list((tmp_path / "killed").rglob("checkpoint-*"))


def test_text_to_text_cuts_its_decoder_alone_and_is_distilled(source, tmp_path):
    arms = ["translation/standard", "translation/scratch-half", "translation/distill-half"]
    records = Engine(tmp_path, source).train(tiny_runs("figure-2", "translation", seeds=[0], arms=arms))
    whole, scratch, distilled = records
    for record in (scratch, distilled):
        assert {stack: len(kept) for stack, kept in record["cuts"]["half"]["keep_layers"].items()} == {
            "encoder": 4,
            "decoder": 2,
        }
    assert whole["cuts"]["half"]["keep_layers"]["decoder"] == [0, 3]
    assert "bleu" in whole["cuts"]["full"]["metrics"]
    assert whole["signatures"]["bleu"]


def test_pretraining_then_pruning_then_finetuning(source, tmp_path):
    studies = {"pretraining": tiny("pretraining"), "sst2": tiny("sst2")}
    experiment = replace(all_experiments()["table-7"], studies=("sst2",))
    runs = plan_runs(experiment, studies, seeds=[0], arms=["pruned-half", "scratch-half", "distill-half"])
    by_name = {run.name: record for run, record in zip(runs, Engine(tmp_path, source).train(runs), strict=True)}
    assert "pretraining/layerdrop-0.2" in by_name
    for arm in ("pruned-half", "scratch-half", "distill-half"):
        record = by_name[f"sst2/{arm}"]
        assert list(record["cuts"]) == ["half"]
        assert record["layer_forwards"] == 4 * 2
        assert record["cuts"]["half"]["parameters"] == by_name["sst2/pruned-half"]["cuts"]["half"]["parameters"]


def fake_records(values, *, study="lm", cut=None):
    """Records of seeds 0, 1, ... from {arm@cut: values}."""
    records = {}
    for side, numbers in values.items():
        arm, cut = side.split("@")
        for seed, number in enumerate(numbers):
            record = records.setdefault(
                (arm, seed), {"key": "", "study": study, "size": "mini", "arm": arm, "seed": seed, "cuts": {}}
            )
            record["cuts"][cut] = {"metrics": {"perplexity": number}}
    return list(records.values())


PAYS = {"standard@full": [5.0, 5.1, 4.9], "scratch-half@half": [6, 6.1, 5.9], "scratch-quarter@quarter": [7, 7.1, 6.9]}


@pytest.mark.parametrize(
    ("numbers", "verdict", "said"),
    [
        (PAYS | {"layerdrop-0.2@half": [5.5, 5.5, 5.5]}, HOLDS, "better by 0.5"),
        (PAYS | {"layerdrop-0.2@half": [6.5, 6.5, 6.5]}, FAILS, "better by -0.5"),
        (PAYS | {"layerdrop-0.2@half": [5.8, 5.9, 5.7]}, UNRESOLVED, "no more than 3 spreads"),
        (PAYS | {"layerdrop-0.2@half": [5.5]}, UNRESOLVED, "one seed"),
        (PAYS, MISSING, "no seed"),
        (
            PAYS | {"standard@full": [6, 6, 6], "layerdrop-0.2@half": [5.5, 5.5, 5.5]},
            UNRESOLVED,
            "that depth pays here is not resolved",
        ),
    ],
)
def test_the_reading_of_a_claim(numbers, verdict, said):
    claim = Claim("cut is better", Side("layerdrop-0.2", "half"), Side("scratch-half", "half"))
    reading = read_claim(claim, all_studies()["lm"], "mini", fake_records(numbers))
    assert reading.verdict == verdict
    assert said in reading.because


def test_a_claim_that_is_not_about_depth_needs_no_precondition():
    claim = Claim("better", Side("layerdrop-0.2", "full"), Side("standard", "full"), about_depth=False)
    records = fake_records({"standard@full": [6, 6.1], "layerdrop-0.2@full": [5, 5.1]})
    assert read_claim(claim, all_studies()["lm"], "mini", records).verdict == HOLDS
    assert {reading.verdict for reading in precondition(all_studies()["lm"], "mini", records)} == {MISSING}


def test_of_a_higher_metric_more_is_better():
    records = fake_records({"pruned-half@half": [0.9, 0.91], "scratch-half@half": [0.8, 0.81]}, study="sst2")
    for record in records:
        record["cuts"] = {
            cut: {"metrics": {"accuracy": v["metrics"]["perplexity"]}} for cut, v in record["cuts"].items()
        }
    claim = Claim("better", Side("pruned-half", "half"), Side("scratch-half", "half"), about_depth=False)
    assert read_claim(claim, all_studies()["sst2"], "mini", records).verdict == HOLDS


def test_every_claim_of_the_package_has_a_reading():
    for experiment in all_experiments().values():
        readings = read_experiment_claims(experiment, all_studies(), "mini", [])
        assert {reading.verdict for reading in readings} <= {MISSING}


def test_a_line_that_was_cut_short_is_dropped_and_other_files_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.add({"key": "a", "study": "lm", "arm": "x", "seed": 0, "cuts": {}})
    with path.open("a") as file:
        file.write('{"key": "b", "stu')
    assert [record["key"] for record in read_journal(path)] == ["a"]
    Journal(path).add({"key": "c", "study": "lm", "arm": "x", "seed": 1, "cuts": {}})
    assert [record["key"] for record in read_journal(path)] == ["a", "c"]
    path.write_text('{"other": 1}\n')
    with pytest.raises(LayerDropConfigError, match="not one of runs"):
        Journal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "cannot be read"),
        ("- 1", "keys and values"),
        ("title: x\nstudies: [lm]\narms: [standard]\nchart: pie", "chart 'pie'"),
        ("title: x\nstudies: [chess]\narms: [standard]\nchart: bars", "study 'chess'"),
        ("title: x\nstudies: [lm]\narms: [magic]\nchart: bars", "arm 'magic'"),
        ("title: x\nstudies: [lm]\narms: [standard]\nchart: bars\ncolour: red", "key 'colour'"),
        ("studies: [lm]\narms: [standard]\nchart: bars", "lacks a key"),
    ],
)
def test_an_experiment_file_that_is_none_is_refused(content, said, tmp_path):
    path = tmp_path / "table-9.yaml"
    path.write_text(content)
    with pytest.raises(ReproductionError, match=said):
        read_experiment(path, all_studies())


def test_a_study_whose_arm_has_no_such_cut_is_refused(tmp_path):
    path = tmp_path / "chess.yaml"
    path.write_text(
        "title: x\ntask: clm\nmetric: perplexity\nlower_is_better: true\narms: {small: {start: scratch, cut: third}}\n"
        "mini: {model: gpt2-4x16, data: {folder: x}, cuts: {full: all}, training: {}}"
    )
    with pytest.raises(ReproductionError, match="no cut 'third'"):
        read_study(path)


def test_every_experiment_of_the_paper_builds_at_its_size_and_a_layer_has_the_published_parameters(capsys):
    planned = [plan_runs(all_experiments()[name], all_studies(), size="paper") for name in PAPER]
    runs = {one.name: one for runs in planned for one in runs}
    found = {one.run.name: one for one in estimate_runs(list(runs.values()))}
    assert set(found) == set(runs)
    whole, small = found["lm/standard"], found["lm/scratch-half"]
    assert whole.layer_parameters == {"layers": 12_596_224}
    assert whole.parameters - small.parameters == 8 * 12_596_224
    assert whole.tokens_a_step == 3 * 3072
    assert whole.gigabytes > whole.parameters * 16 / 1e9
    pretrained, finetuned = found["pretraining/standard"], found["sst2/standard"]  # of one vocabulary, other heads
    assert abs(finetuned.parameters - pretrained.parameters) < 1e6
    assert round(finetuned.parameters / 1e6) == 125  # RoBERTa base; Table 4 is of the large one
    assert round(found["sst2-large/standard"].parameters / 1e6) == 355
    assert not any(
        one.name.endswith("-large/standard") for one in plan_runs(all_experiments()["table-4"], all_studies())
    )
    assert run(["table-2", "--size", "paper", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "accelerate launch" in out
    assert "12,596,224" in out


def test_every_experiment_builds_in_miniature_and_no_input_is_longer_than_the_pretrained_model_takes():
    planned = [plan_runs(experiment, all_studies(), seeds=[0]) for experiment in all_experiments().values()]
    runs = {one.name: one for runs in planned for one in runs}
    found = {one.run.name: one for one in estimate_runs(list(runs.values()))}
    assert set(found) == set(runs)
    begun = [(one, runs[one.source.name]) for one in runs.values() if one.source and one.source.study != one.study]
    assert begun
    for one, source in begun:
        assert one.size.max_length <= described(source).fields["max_position_embeddings"]
        assert found[one.name].layer_parameters == found[source.name].layer_parameters


def test_the_command_trains_and_writes_pages_that_need_nothing_else(source, tmp_path, capsys):
    command = ["table-2", "--data-dir", str(source.data_dir), "--output", str(tmp_path / "out")]
    assert run([*command, "--short", "--seeds", "3", "--arms", "standard"]) == 0
    assert "say nothing of quality" in capsys.readouterr().out
    (record,) = read_journal(tmp_path / "out" / "journal.jsonl")
    assert record["short"]
    assert record["seed"] == 3
    assert run([*command, "--page-only"]) == 0
    assert "none yet" in (tmp_path / "out" / "pages" / "table-2-mini.md").read_text()
    records = fake_records(PAYS | {"layerdrop-0.2@full": [4, 4.1, 3.9]})
    for record in records:
        record |= {"layer_forwards": 1, "cpu_seconds": 2.0, "rows_per_second": 3.0, "key": str(record["seed"])}
    paths = write_pages(all_experiments()["table-2"], all_studies(), "mini", records, tmp_path / "pages")
    markdown, _, html = (path.read_text() for path in paths)
    assert "| layerdrop-0.2 | 4 ± 0.1 |" in markdown
    assert "| LayerDrop regularizes the whole model | lm | holds |" in markdown
    assert "<svg" in html
    assert "holds" in html
    assert "src=" not in html
    assert "<script" not in html
    assert run(["--list"]) == 0
    assert "figure-8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "EXPERIMENT"),
        (["table-9"], "choose one of table-1"),
        (["table-2", "--arms", "magic"], "no arm 'magic'"),
        (["table-2", "--studies", "chess"], "no study 'chess'"),
        (["table-2", "--size", "huge"], "size"),
        (["table-2", "--seeds", "a"], "whole numbers"),
        (["table-2", "--data-dir", "nowhere"], "no train file"),
        (["table-2", "--train-file", "x.txt"], "give both"),
        (["figure-2", "--train-file", "x.txt", "--validation-file", "x.txt"], "one study"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_loaded(words, said, capsys):
    assert run([*words]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
