"""The model types of transformers are known without importing it, and another is refused by one sentence."""

from __future__ import annotations

import json

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop import AutoLayerDropModel, save_pruned
from hf_layerdrop.checkpoints.model_types import known_types, unknown_type
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError

CASES = [
    ("bertt", "nearest: bert"),
    ("quite_another", "does not know:"),
    (None, "names no model_type"),
    ("", "no model_"),
]


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


def test_all_types_that_transformers_lists_are_known():
    assert set(CONFIG_MAPPING_NAMES) <= known_types()
    assert not {"bertt", "model_type", "architectures"} & known_types()
    assert unknown_type({"model_type": "bertt", "auto_map": {"AutoConfig": "x.Y"}}, "m") is None


@pytest.mark.parametrize(("model_type", "said"), CASES)
def test_an_unknown_type_is_refused_by_commands(of_type, model_type, said, rows, tmp_path, capsys):
    folder, out = of_type(model_type), tmp_path / "out"
    data = ["--task", "sst2", "--validation-file", rows]
    for words in (
        ["inspect", folder],
        ["prune", folder, "--keep-layers", "2", "--output", out],
        ["sweep", folder, *data, "--output", out],
        ["train", "--model", folder, *data, "--train-file", rows, "--output_dir", out],
    ):
        capsys.readouterr()
        assert run([str(word) for word in words]) == 2
        shown, errors = capsys.readouterr()
        assert shown == ""
        assert said in errors
        assert errors.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(("model_type", "said"), CASES)
def test_an_unknown_type_is_refused_from_python_in_the_same_words(of_type, model_type, said, tmp_path):
    folder = of_type(model_type)
    for load in (
        lambda: AutoLayerDropModel.from_pretrained(folder),
        lambda: AutoLayerDropModel.from_pretrained(folder, keep_layers=2),
        lambda: save_pruned(folder, tmp_path / "out", keep_layers=2),
    ):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert said in str(caught.value)
        assert "pip install git" not in str(caught.value)


def test_inspect_says_so_beside_what_the_files_show(of_type, capsys):
    assert run(["inspect", str(of_type("bertt")), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["supported"] is False
    assert "nearest: bert" in facts["reason"]
    assert facts["parameters"] > 0
