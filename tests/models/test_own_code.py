"""Checkpoints that bring code of their own: their classes are loaded where that is asked for, and saved with it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertTokenizer

from conftest import build
from hf_layerdrop import (
    AutoLayerDropModel,
    AutoLayerDropModelForCausalLM,
    AutoLayerDropModelForSequenceClassification,
    layerdrop_state,
    load_checkpoint,
    pipeline,
    prune_layers,
    save_pruned,
)
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError
from hub_server import HubServer

CONFIG = """
from transformers import BertConfig

class {config}(BertConfig):
    model_type = "{type}"
"""
MODELS = """
from transformers import BertForSequenceClassification, BertModel
{imported}

class OwnModel(BertModel):
    {config}

class OwnForSequenceClassification(BertForSequenceClassification):
    {config}

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output
"""
MAPPED = {
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
}
BATCH = {"input_ids": torch.arange(5, 14)[None]}
KEPT = [0, 2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Have transformers copy code to a folder of the tests', which Python remembers as that of the package."""
    before = transformers.dynamic_module_utils.HF_MODULES_CACHE  # which other tests may have made Python look into
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [place for place in sys.path if place != before])
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)
        yield
        sys.modules.pop("transformers_modules", None)


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked at the terminal"))


@pytest.fixture(params=["native config", "own config"])
def folder(request, tmp_path):
    """A checkpoint with code for its models, and perhaps for its config, in a folder of a name that no other has."""
    path = tmp_path / f"own_{request.param.split()[0]}_{tmp_path.name}"
    source = build("BertForSequenceClassification")
    source.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["OwnForSequenceClassification"], "auto_map": dict(MAPPED)}
    imported = own = ""
    if request.param == "own config":
        kind = f"own-{tmp_path.name}"
        config["auto_map"]["AutoConfig"] = "configuration_own.OwnConfig"
        config["model_type"] = kind
        (path / "configuration_own.py").write_text(CONFIG.format(config="OwnConfig", type=kind))
        imported, own = "from .configuration_own import OwnConfig", "config_class = OwnConfig"
    (path / "modeling_own.py").write_text(MODELS.format(imported=imported, config=own or "pass"))
    (path / "config.json").write_text(json.dumps(config))
    return path


def plain(path, keep_layers):
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)
    return model if keep_layers is None else prune_layers(model, keep_layers)


def served(path, **kwargs):
    return pipeline("text-classification", path, **kwargs).model


DOORS = [AutoLayerDropModelForSequenceClassification.from_pretrained, load_checkpoint, served]


@pytest.mark.parametrize("keep_layers", [None, KEPT])
@pytest.mark.parametrize("door", DOORS)
def test_its_class_is_loaded_where_that_is_asked_for(door, keep_layers, folder):
    model = door(folder, trust_remote_code=True, keep_layers=keep_layers).eval()
    expected = plain(folder, keep_layers).eval()
    assert type(model).__name__ == "OwnForSequenceClassification"
    assert torch.equal(model(**BATCH).logits, expected(**BATCH).logits)


@pytest.mark.parametrize("door", DOORS)
def test_its_class_is_loaded_where_the_config_names_the_native_one(door, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    model = door(folder, trust_remote_code=True, keep_layers=KEPT).eval()
    assert type(model).__name__ == "OwnForSequenceClassification"
    assert torch.equal(model(**BATCH).logits, plain(folder, KEPT).eval()(**BATCH).logits)


@pytest.mark.parametrize("folder", ["native config"], indirect=True)
def test_the_native_class_is_loaded_where_the_code_is_for_another_task(folder):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    del config["auto_map"]["AutoModelForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_checkpoint(folder, trust_remote_code=True)).__name__ == "BertForSequenceClassification"


def test_it_drops_layers(folder):
    model = AutoLayerDropModel.from_pretrained(folder, trust_remote_code=True, layerdrop=0.5)
    assert type(model).__name__ == "OwnModel"
    assert layerdrop_state(model).rates == {"encoder": [0.5] * 4}


@pytest.mark.parametrize("trusted", [True, False])
def test_its_class_is_built_from_its_config_where_that_is_asked_for(trusted, folder):
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if not trusted and "own_own" in folder.name:
        with pytest.raises(CheckpointError, match="not run unless you ask"):
            AutoLayerDropModelForSequenceClassification.from_config(config, trust_remote_code=trusted)
        return
    model = AutoLayerDropModelForSequenceClassification.from_config(config, trust_remote_code=trusted, layerdrop=0.5)
    expected = "OwnForSequenceClassification" if trusted else "LayerDropBertForSequenceClassification"
    assert type(model).__name__ == expected
    assert layerdrop_state(model).rates == {"encoder": [0.5] * 4}


def test_its_class_is_loaded_from_the_hub(folder, tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.use_in_process(monkeypatch, tmp_path / "home")
        repo = f"alice/{folder.name.split('_')[1]}"  # copied code is known by its repository and commit
        hub.add_folder(repo, folder)
        for door in DOORS:
            model = door(repo, trust_remote_code=True, code_revision="main", keep_layers=KEPT).eval()
            assert torch.equal(model(**BATCH).logits, plain(folder, KEPT).eval()(**BATCH).logits)


def test_it_is_saved_with_its_code(folder, tmp_path):
    small = save_pruned(folder, tmp_path / "small", keep_layers=KEPT, trust_remote_code=True)
    again = plain(small, None)
    assert type(again).__name__ == "OwnForSequenceClassification"
    assert torch.equal(again.eval()(**BATCH).logits, plain(folder, KEPT).eval()(**BATCH).logits)
    assert (small / "modeling_own.py").is_file()


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": None}], ids=repr)
@pytest.mark.parametrize("door", DOORS)
def test_its_code_is_not_run_unless_asked(door, trust, folder, tmp_path):
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    native = json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    if native and door is not load_checkpoint:  # as plain transformers does, whose class it has
        assert type(door(folder, **trust)).__name__.removeprefix("LayerDrop") == "BertForSequenceClassification"
    else:
        with pytest.raises(CheckpointError, match="not run unless you ask"):
            door(folder, **trust)
    assert not (tmp_path / "ran").exists()


def test_a_task_for_which_it_has_no_class_is_refused(folder):
    own = "own_own" in folder.name
    with pytest.raises(UnsupportedModelError, match="AutoModelForCausalLM") if own else nullcontext():
        AutoLayerDropModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('broken')", "OwnModel = 3", "class Other: pass", "import nothing_of_this_name", "("]
)
@pytest.mark.parametrize("door", DOORS)
def test_code_that_gives_no_class_is_named(door, code, folder):
    (folder / "modeling_own.py").write_text(code)
    with pytest.raises(CheckpointError, match=r"gives no class 'modeling_own\.Own"):
        door(folder, trust_remote_code=True)


def test_a_config_without_auto_map_ignores_that_code_is_trusted(tmp_path):
    build("BertForSequenceClassification").save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path, trust_remote_code=True)
    assert type(model) is BertForSequenceClassification
    assert type(model.config) is BertConfig
    assert transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True).config.num_hidden_layers == 4
