"""A checkpoint that cannot be read: one sentence, which it is, what others say of it, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop import AutoLayerDropModel, AutoLayerDropModelForSequenceClassification, save_pruned
from hf_layerdrop.checkpoints.unreadable import reading
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, KeepLayersError

CASES = [("bertt", "`bertt`"), ("quite_another", "`quite_another`"), (None, "`model_type`"), ("", "model type ``")]


@pytest.fixture
def of_type(model, tmp_path):
    def save(model_type, **more):
        folder = tmp_path / "model"
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type, **more}
        kept = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return save


@pytest.mark.parametrize(("model_type", "said"), CASES)
def test_commands_refuse_an_unknown_type_and_write_nothing(of_type, model_type, said, rows, tmp_path, capsys):
    folder, out = of_type(model_type), tmp_path / "out"
    data = ["--task", "sst2", "--validation-file", str(rows)]
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ["prune", str(folder), "--keep-layers", "2", "--output", str(out)],
        ["sweep", str(folder), *data, "--output", str(out)],
        ["train", "--model", str(folder), *data, "--train-file", str(rows), "--output_dir", str(out)],
    ):
        capsys.readouterr()
        assert run(words) == 2
        shown, errors = capsys.readouterr()
        (line,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert shown == ""
        assert said in line
        assert str(folder) in line
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("model_type", "said"), CASES)
def test_an_unknown_type_is_refused_from_python_in_the_words_of_transformers(of_type, model_type, said, tmp_path):
    folder = of_type(model_type)
    for load in (
        lambda: AutoLayerDropModel.from_pretrained(folder),
        lambda: AutoLayerDropModel.from_pretrained(folder, keep_layers=2),
        lambda: save_pruned(folder, tmp_path / "out", keep_layers=2),
    ):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "pip install git" not in str(caught.value)
        assert said in str(caught.value.__cause__)


def test_inspect_says_what_the_files_hold_all_the_same(of_type, capsys):
    assert run(["inspect", str(of_type("bertt")), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] > 0
    assert facts["supported"] is False
    assert "bertt" in facts["reason"]


def test_weights_of_other_shapes_are_refused_whole_too(of_type):
    folder = of_type("bert", intermediate_size=24)
    with pytest.raises(CheckpointError, match="ignore_mismatched_sizes") as caught:
        AutoLayerDropModelForSequenceClassification.from_pretrained(folder)
    assert type(caught.value.__cause__) is RuntimeError


def test_what_is_not_about_the_checkpoint_is_told_as_it_is():
    for error in (torch.OutOfMemoryError("no memory"), TypeError("no such argument"), KeepLayersError("no such layer")):
        with pytest.raises(type(error)) as caught, reading(Path("model")):
            raise error
        assert caught.value is error
