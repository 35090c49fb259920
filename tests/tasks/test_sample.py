"""The sample of SST-2 is a task by name: from Python and on the command line, without a network and without files."""

from __future__ import annotations

import pytest

from classifiers import save_classifier
from hf_layerdrop import embedded_sst2, load_task, load_task_data, read_recommended
from hf_layerdrop.cli import run
from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.registry import MORE_TASKS, TASKS, with_dataset

SAMPLE = "sst2-sample"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*address, **_):
        raise AssertionError(f"the network was asked for {address}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture
def short_sample(monkeypatch):
    """The task as it is, with few rows, so that commands answer in seconds."""
    splits = embedded_sst2()
    few = {name: rows.select(range(24)) for name, rows in splits.items()}
    monkeypatch.setitem(vars(MORE_TASKS[SAMPLE]), "embedded", lambda: few)
    return few


def test_its_rows_are_those_of_the_sample(no_network):
    data, rows = load_task_data(SAMPLE), embedded_sst2()
    assert list(data.train["sentence"]) == list(rows["train"]["sentence"])
    assert list(data.validation["validation"]["labels"]) == list(rows["validation"]["label"])
    assert data.task.label_names == TASKS["sst2"].label_names
    assert load_task_data(SAMPLE, train=False).train is None


@pytest.mark.parametrize("name", ["sst2-sample", "SST2_sample"])
def test_it_is_found_by_names_that_are_guessed(name):
    assert load_task(name).name == SAMPLE


@pytest.mark.parametrize("name", ["sst2-smaple", "sst2sample", "sst-2-sample"])
def test_an_unknown_name_is_told_of_it(name):
    with pytest.raises(TaskError, match=f"nearest: {SAMPLE}.*choose one of .*{SAMPLE}"):
        load_task(name)


def test_another_data_set_takes_its_place(tmp_path):
    other = tmp_path / "own.csv"
    other.write_text("sentence,label\nfine,1\npoor,0\n")
    data = load_task_data(SAMPLE, train_file=other, validation_file=other)
    assert list(data.train["sentence"]) == ["fine", "poor"]
    assert data.task.embedded is None
    assert with_dataset(load_task(SAMPLE), "user/reviews").embedded is None


def test_labels_of_other_words_are_told_the_way_out(tmp_path):
    own = tmp_path / "own.csv"
    own.write_text("sentence,label\nfine,yes\npoor,no\n")
    with pytest.raises(TaskError, match="leave --task out"):
        load_task_data(SAMPLE, train_file=own, validation_file=own)


def test_who_cannot_reach_the_hub_is_told_of_it(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError("offline"))
    )
    monkeypatch.setattr("hf_layerdrop.tasks.data._is_cached", lambda task: False)
    with pytest.raises(TaskError, match=f"--task {SAMPLE}"):
        load_task_data("sst2")
    with pytest.raises(TaskError) as error:
        load_task_data("rte")
    assert SAMPLE not in str(error.value)


def test_a_checkpoint_that_was_measured_on_it_is_measured_so_again(no_network, short_sample, tmp_path, capsys):
    model = save_classifier(tmp_path / "model")
    for words in (["--task", SAMPLE], []):
        assert run(["sweep", str(model), *words, "--output", str(tmp_path / f"out{len(words)}")]) == 0
    assert f"Measured as before: task {SAMPLE}, max length 128.\n" in capsys.readouterr().out
    measured = read_recommended(model).measured_with
    assert (measured.task, measured.dataset, measured.config) == (SAMPLE, "nyu-mll/glue", "sst2")


@pytest.mark.parametrize("command", ["train", "sweep", "search"])
def test_help_lists_it(command, capsys):
    assert run([command, "--help"]) == 0
    assert SAMPLE in capsys.readouterr().out


def test_a_cut_is_healed_on_what_its_checkpoint_was_measured_on(no_network, short_sample, tmp_path, capsys):
    model = save_classifier(tmp_path / "model")
    assert run(["sweep", str(model), "--task", SAMPLE, "--max-length", "16", "--output", str(tmp_path / "swept")]) == 0
    words = ["--keep-layers", "2", "--method", "whole", "--max_steps", "1", "--use_cpu"]
    assert run(["heal", str(model), *words, "--output", str(tmp_path / "healed")]) == 0
    assert f"Measured as before: task {SAMPLE}, max length 16.\n" in capsys.readouterr().out
    measured = read_recommended(tmp_path / "healed").measured_with
    assert (measured.task, measured.max_length) == (SAMPLE, 16)
