"""Code that a checkpoint brings along is not run, whatever stands on the standard input, unless it was asked for."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import pytest

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop import AutoLayerDropModel, load_checkpoint, pipeline, save_pruned
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError

CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class OwnConfig(BertConfig):
    model_type = {type!r}
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
class OwnTokenizer(BertTokenizer):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A classifier whose config, model and tokenizer are of classes of its own; somebody says yes to everything."""
    folder = save_classifier(tmp_path / "model")
    known = request.param
    (folder / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran"), type="bert" if known else "own"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModel": "own.OwnModel",
            "AutoModelForSequenceClassification": "own.OwnModel",
        }
    }
    config |= {} if known else {"model_type": "own", "architectures": ["OwnModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 1000))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


@pytest.mark.parametrize("own", [True, False], indirect=True, ids=["a known type", "a type of its own"])
def test_nothing_of_it_is_run(own, rows, tmp_path, capsys):
    data = ["--task", "sst2", "--validation-file", str(rows)]
    commands = [
        ["inspect", str(own)],
        ["prune", str(own), "--keep-layers", "2", "--output", str(tmp_path / "out")],
        ["push", str(own), "--keep-layers", "9", "--repo-id", "a/b"],
        ["sweep", str(own), *data, "--output", str(tmp_path / "swept"), "--depths", "2"],
        ["search", str(own), *data, "--depth", "2", "--strategy", "first", "--output", str(tmp_path / "chosen.json")],
    ]
    for words in commands:
        assert run(words) in (0, 2), capsys.readouterr().err
    for door in (
        lambda: load_checkpoint(own),
        lambda: load_checkpoint(own, keep_layers=2),
        lambda: AutoLayerDropModel.from_pretrained(own, layerdrop=0.2),
        lambda: save_pruned(own, tmp_path / "saved", keep_layers=2),
        lambda: load_tokenizer(str(own)),
        lambda: pipeline("text-classification", own, keep_layers=2),
    ):
        with suppress(LayerDropError):  # it may be refused, or do without
            door()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("own", [True], indirect=True)
def test_inspect_says_that_it_is_not(own, capsys):
    assert run(["inspect", str(own), "--json"]) == 0
    traps = {trap["name"]: trap["says"] for trap in json.loads(capsys.readouterr().out)["traps"]}
    assert "not run unless you ask for it" in traps["own code"]


@pytest.mark.parametrize("own", [True], indirect=True)
def test_the_tokenizer_of_its_own_is_taken_where_it_was_asked_for(own, rows, tmp_path):
    config = json.loads((own / "config.json").read_text())
    config["auto_map"].pop("AutoModelForSequenceClassification")  # its model is one of transformers
    (own / "config.json").write_text(json.dumps(config))
    data = ["--task", "sst2", "--validation-file", str(rows), "--depths", "2", "--output", str(tmp_path / "swept")]
    assert run(["sweep", str(own), *data, "--trust-remote-code"]) == 0
    assert (tmp_path / "ran").exists()
