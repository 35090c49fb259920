"""hf-layerdrop search: it chooses what search_layers chooses, and says what is wrong before it loads anything."""

from __future__ import annotations

import json

import pytest

from classifiers import bart, model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.checkpoints.stored_model import find_stored_model
from hf_layerdrop.cli import run
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.results.table import format_kept
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.search.strategies import STRATEGIES
from light import run_lightly

COLUMNS = ("--text-columns", "sentence", "--label-column", "label")


def search(model, rows, output, *more):
    return run(
        [
            "search",
            str(model),
            "--validation-file",
            str(rows),
            *COLUMNS,
            "--output",
            str(output),
            "--batch-size",
            "5",
            *more,
        ]
    )


def test_the_selection_is_written_shown_and_read_by_prune(model, rows, tmp_path, capsys):
    output = tmp_path / "out" / "selection.json"
    assert search(model, rows, output, "--depth", "2", "--strategy", "exhaustive", "--metric", "loss") == 0
    found = Selection.from_dict(json.loads(output.read_text()))
    assert found.evaluations == 6
    assert found.metric == "loss"
    assert "held out" in found.split
    shown = " ".join(capsys.readouterr().out.split())
    assert f"kept layers {format_kept(found.keep_layers)}" in shown
    assert f"{found.score:.4f}" in shown
    assert f"{found.test_score:.4f} on separate data" in shown
    assert f"--keep-layers {output}" in shown
    assert len((output.parent / "selection.json.journal").read_text().splitlines()) == 7
    assert run(["prune", str(model), "--keep-layers", str(output), "--output", str(tmp_path / "pruned")]) == 0
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["hf_layerdrop"]["keep_layers"] == {"encoder": list(found.keep_layers["encoder"])}


def test_a_second_search_goes_on_from_the_journal_of_the_first(model, rows, tmp_path, capsys):
    output = tmp_path / "selection.json"
    assert search(model, rows, output, "--depth", "2") == 0
    assert search(model, rows, output, "--depth", "2") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert search(model, rows, output, "--depth", "2", "--overwrite") == 0
    found = Selection.from_dict(json.loads(output.read_text()))
    assert found.from_journal == found.evaluations > 0


def test_a_test_file_is_what_the_winner_is_scored_on(model, rows, tmp_path):
    output = tmp_path / "selection.json"
    other = tmp_path / "test.csv"
    other.write_text("sentence,label\n" + "bad film,0\ngood film,1\n" * 4)
    assert search(model, rows, output, "--depth", "3", "--test-file", str(other), "--metric", "loss") == 0
    found = Selection.from_dict(json.loads(output.read_text()))
    assert found.split == "test_dataset"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = tokenizer(["bad film", "good film"] * 4, return_tensors="pt")
    batch["labels"] = batch["input_ids"].new_tensor([0, 1] * 4)
    network = AutoModelForSequenceClassification.from_pretrained(model)
    alone = evaluate_depths(network, [dict(batch)], depths=[found.keep_layers], metric="loss", progress=False)[0]
    assert found.test_score == pytest.approx(alone.metrics["loss"], abs=1e-6)


def test_budgets_by_parameters_and_latency(model, rows, tmp_path, capsys):
    whole = read_headers(model).parameters
    one = find_stored_model(read_headers(model)).stacks[0].parameters[0]
    output = tmp_path / "selection.json"
    assert search(model, rows, output, "--max-parameters", str(whole - one)) == 0
    found = Selection.from_dict(json.loads(output.read_text()))
    assert found.parameters == whole - one
    assert found.outside[0].parameters == whole
    assert "just outside" in capsys.readouterr().out
    assert search(model, rows, output, "--max-latency-ms", "10000", "--overwrite", "--latency-length", "8") == 0
    assert len(Selection.from_dict(json.loads(output.read_text())).keep_layers["encoder"]) == 4


BAD = [
    (("--depth", "9"), "from 1 to 4"),
    (("--depth", "0"), "from 1 to 4"),
    ((), "either --depth, or a budget"),
    (("--depth", "2", "--max-parameters", "1M"), "not both"),
    (("--max-parameters", "10"), "cheapest possible (1 of 4 encoder layers) has"),
    (("--max-parameters", "lots"), "60M"),
    (("--max-size-mb", "0.001"), "cheapest possible"),
    (("--max-latency-ms", "-1"), "above 0"),
    (("--depth", "2", "--strategy", "beem"), "did you mean 'beam'"),
    (("--depth", "2", "--strategy", "first", "--width", "2"), "no setting 'width'"),
    (("--depth", "2", "--strategy", "exhaustive", "--max-sub-networks", "5"), "6 sub-networks"),
    (("--depth", "2", "--metric", "bleu"), "--metric is 'bleu'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_input_is_one_line_and_writes_nothing(model, rows, tmp_path, arguments, message, capsys):
    output = tmp_path / "selection.json"
    capsys.readouterr()
    assert search(model, rows, output, *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [rows]


def test_a_depth_that_one_of_two_stacks_lacks_names_it(bart, rows, tmp_path, capsys):
    assert search(bart, rows, tmp_path / "s.json", "--depth", "4") == 2
    assert "the stack 'decoder' has 3 layers" in capsys.readouterr().err


def test_too_few_rows_for_a_batch(model, tmp_path, capsys):
    few = tmp_path / "few.csv"
    few.write_text("sentence,label\ngood film,1\nbad film,0\n")
    assert search(model, few, tmp_path / "selection.json", "--depth", "2") == 2
    assert "2 examples, fewer than a batch of 5" in capsys.readouterr().err


def test_help_names_every_strategy():
    code, shown, _ = run_lightly("search", "--help")
    assert code == 0
    assert all(name in shown for name in STRATEGIES)
