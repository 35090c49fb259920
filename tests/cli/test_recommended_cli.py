"""Commands that measure a checkpoint folder remember what they found there, and how; commands that cut go by it."""

from __future__ import annotations

import json
import os

import pytest

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop import load_checkpoint, load_task_data, read_recommended, train, write_recommended
from hf_layerdrop.cli import run
from hf_layerdrop.results.table import read_results
from hf_layerdrop.tasks.registry import custom_task
from strangers import refused
from tables import table_for


@pytest.fixture
def model(tmp_path):
    return save_classifier(tmp_path / "sst2")


@pytest.fixture
def measured(model):
    write_recommended(table_for(), model)
    return model


def layers_of(folder):
    return load_checkpoint(folder).config.hf_layerdrop["keep_layers"]["encoder"]


def kept_by(table):
    return {tuple(one.keep_layers["encoder"]) for one in table.sets}


def sweep(model, output, *words):
    return run(["sweep", str(model), "--output", str(output), *map(str, words)])


def test_sweep_remembers_what_it_measured_and_how(model, rows, tmp_path, capsys):
    data = ["--task", "sst2", "--validation-file", rows, "--max-length", "12"]
    assert sweep(model, tmp_path / "first", *data, "--depths", "4,2") == 0
    table = read_recommended(model)
    first = read_results(tmp_path / "first" / "depth_results.json")
    assert [one.metrics for one in table.sets] == [dict(result.metrics) for result in first]
    assert kept_by(table) == {(0, 1, 2, 3), (0, 3)}
    assert table.whole.rows["accuracy"] == 20
    low, high = table.whole.intervals["accuracy"]
    assert low < table.whole.metrics["accuracy"] < high
    assert "rows a batch" in table.whole.machine
    assert str(tmp_path) not in (model / "layerdrop.json").read_text()  # a path is nobody's business
    capsys.readouterr()
    assert sweep(model, tmp_path / "again", "--depths", "4,3") == 0
    said = capsys.readouterr().out
    assert f"Measured as before: task sst2, {rows}, max length 12." in said
    assert "20 rows, 95 % intervals in brackets" in said
    assert kept_by(read_recommended(model)) == {(0, 1, 2, 3), (0, 3), (0, 1, 3)}
    assert read_recommended(model).measured_with == table.measured_with


def test_own_columns_are_remembered_too(model, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("\n".join(["film,good", *(f"{'good' if i % 2 else 'bad'} film,{i % 2}" for i in range(8))]))
    words = ["--validation-file", file, "--text-columns", "film", "--label-column", "good", "--depths", "2"]
    assert sweep(model, tmp_path / "first", *words) == 0
    assert sweep(model, tmp_path / "again", "--depths", "1") == 0
    assert kept_by(read_recommended(model)) == {(0, 3), (3,)}


def test_other_data_takes_the_place(model, rows, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text(rows.read_text() + "\na film,1")
    assert sweep(model, tmp_path / "first", "--task", "sst2", "--validation-file", rows, "--depths", "4,3") == 0
    assert sweep(model, tmp_path / "other", "--task", "sst2", "--validation-file", other, "--depths", "2") == 0
    assert "in place of sets that were measured otherwise" in capsys.readouterr().out
    assert kept_by(read_recommended(model)) == {(0, 3)}


def test_files_that_are_gone_are_named(model, rows, tmp_path, capsys):
    assert sweep(model, tmp_path / "first", "--task", "sst2", "--validation-file", rows, "--depths", "1") == 0
    rows.unlink()
    assert "validation.csv" in refused(capsys, "sweep", model, "--output", tmp_path / "again")
    os.remove(model / ".cache" / "huggingface" / "layerdrop_files.json")  # as in a copy on another machine
    assert "not known here" in refused(capsys, "sweep", model, "--output", tmp_path / "again")


def test_a_checkpoint_that_was_never_measured_asks_for_data(model, tmp_path, capsys):
    assert "--validation-file" in refused(capsys, "sweep", model, "--output", tmp_path / "out")
    (model / "layerdrop.json").write_text("broken")
    assert "--validation-file" in refused(capsys, "sweep", model, "--output", tmp_path / "out")


def test_a_broken_table_gives_way_to_what_is_measured(model, rows, tmp_path):
    (model / "layerdrop.json").write_text("broken")
    assert sweep(model, tmp_path / "out", "--task", "sst2", "--validation-file", rows, "--depths", "2") == 0
    assert kept_by(read_recommended(model)) == {(0, 3)}


def test_a_folder_that_cannot_be_written_costs_the_note_alone(model, rows, tmp_path, recwarn):
    (model / "layerdrop.json").mkdir()
    assert sweep(model, tmp_path / "out", "--task", "sst2", "--validation-file", rows, "--depths", "2") == 0
    assert len(read_results(tmp_path / "out" / "depth_results.json")) == 1
    assert any("layerdrop.json' could not be written" in str(warning.message) for warning in recwarn)
    assert {path.name for path in model.iterdir() if path.name.startswith(".layerdrop")} == set()


def test_search_notes_its_choice_beside_what_sweep_measured(model, rows, tmp_path):
    words = ["--task", "sst2", "--validation-file", rows]
    assert sweep(model, tmp_path / "out", *words, "--depths", "4,3,2") == 0
    selection = tmp_path / "selection.json"
    assert run(["search", str(model), "--depth", "2", "--batch-size", "8", "--output", str(selection)]) == 0
    chosen = json.loads(selection.read_text())["keep_layers"]
    table = read_recommended(model)
    found = next(one for one in table.sets if one.keep_layers == chosen)
    assert found.chosen_by == "beam"
    assert {(0, 1, 2, 3), (0, 1, 3), (0, 3)} <= kept_by(table)
    assert set(found.rows.values()) == {20}  # as sweep measures: on all rows, and not on those of the search


def test_cuts_go_by_the_table(measured, tmp_path):
    for spec, kept in (("best:2", [1, 2]), ("fastest:0.99", [0, 1, 3]), ("2", [0, 3])):
        output = tmp_path / spec.replace(":", "-")
        assert run(["prune", str(measured), "--keep-layers", spec, "--output", str(output)]) == 0
        assert layers_of(output) == kept


def test_lists_of_depths_go_by_it_too(measured, rows, tmp_path):
    words = ["--task", "sst2", "--validation-file", rows, "--depths", "best:2,2,fastest:0.99"]
    assert sweep(measured, tmp_path / "out", *words) == 0
    found = read_results(tmp_path / "out" / "depth_results.json")
    assert [result.keep_layers["encoder"] for result in found] == [(1, 2), (0, 3), (0, 1, 3)]


def test_commands_refuse_before_they_work(model, tmp_path, capsys):
    words = ["prune", model, "--keep-layers", "best:2", "--output", tmp_path / "out"]
    assert "hf-layerdrop sweep" in refused(capsys, *words)
    (model / "layerdrop.json").write_text('{"version": 2}')
    assert "of version 2" in refused(capsys, *words)
    write_recommended(table_for().cut({"encoder": (0, 1, 3)}), model)
    assert "belong to another checkpoint" in refused(capsys, *words)
    assert "best:2" in refused(capsys, "sweep", model, "--depths", "best:2", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inspect_shows_the_sets_or_why_not(measured, capsys):
    assert run(["inspect", str(measured)]) == 0
    said = capsys.readouterr().out
    assert "recommended sets" in said
    assert "0.8000" in said
    assert run(["inspect", str(measured), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recommended_sets"]["depths"] == {"encoder": 4}
    (measured / "layerdrop.json").write_text("broken")
    assert run(["inspect", str(measured), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recommended_sets"] is None
    assert [trap["name"] for trap in facts["traps"]] == ["recommended sets"]
    (measured / "layerdrop.json").unlink()
    assert run(["inspect", str(measured), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traps"] == []


def test_training_leaves_a_table_of_the_new_weights(model, rows, tmp_path):
    from transformers import TrainingArguments

    data = load_task_data(custom_task(["sentence"]), train_file=rows, validation_file=rows)
    output = tmp_path / "trained"
    settings = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    write_recommended(table_for(), model)
    run = train(data, str(model), TrainingArguments(output, **settings), eval_depths=["best:2", 3])
    assert [result.keep_layers["encoder"] for result in run.results] == [(1, 2), (0, 1, 3)]
    assert kept_by(read_recommended(output)) == {(1, 2), (0, 1, 3)}
    assert sweep(output, tmp_path / "sweep", "--depths", "1") == 0
    assert kept_by(read_recommended(output)) == {(1, 2), (0, 1, 3), (3,)}
    write_recommended(table_for(), output)  # of weights that the next run replaces
    train(data, str(model), TrainingArguments(output, **settings), eval_depths=[1], overwrite=True)
    assert kept_by(read_recommended(output)) == {(3,)}
