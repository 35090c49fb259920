"""``model_class=``: any class that a user would name, and one sentence for what is none; who is blamed for what."""

import json

import pytest
import transformers

import hf_layerdrop
from conftest import assert_same_tensors, build
from hf_layerdrop import AutoLayerDropModelForSeq2SeqLM, load_checkpoint, save_pruned
from hf_layerdrop.errors import CheckpointError, LayerDropConfigError, UnsupportedModelError

HEAD = "BertForMaskedLM"
CHOICES = [
    transformers.BertForMaskedLM,
    hf_layerdrop.LayerDropBertForMaskedLM,
    transformers.AutoModelForMaskedLM,
    hf_layerdrop.AutoLayerDropModelForMaskedLM,
    "BertForMaskedLM",
    "AutoModelForMaskedLM",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    build(HEAD).save_pretrained(folder)
    return folder


def depth_of(model):
    return model.config.num_hidden_layers


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_class_that_was_chosen_is_loaded_and_cut(choice, folder, tmp_path):
    cut = load_checkpoint(folder, model_class=choice, keep_layers=2)
    assert type(cut) is transformers.BertForMaskedLM
    assert depth_of(cut) == len(cut.bert.encoder.layer) == 2
    saved = save_pruned(folder, tmp_path / "cut", keep_layers=2, model_class=choice, tokenizer=False)
    assert_same_tensors(transformers.BertForMaskedLM.from_pretrained(saved).state_dict(), cut.state_dict())


@pytest.mark.parametrize("choice", ["BertForNothing", "AutoTokenizer", transformers.BertConfig, 3, dict])
def test_what_is_no_class_is_refused_in_one_sentence(choice, folder):
    with pytest.raises(UnsupportedModelError, match=r"model_class is .*; give a model class"):
        load_checkpoint(folder, model_class=choice)


def test_arguments_of_the_caller_are_named_and_not_the_checkpoint_alone(folder):
    with pytest.raises(CheckpointError, match=r"could not be loaded with attn_implementation \(.*nonsense"):
        load_checkpoint(folder, attn_implementation="nonsense")


def test_a_fault_of_ours_is_not_laid_on_the_files(folder, monkeypatch):
    def fault(model):
        raise KeyError("a bug")

    monkeypatch.setattr("hf_layerdrop.pruning.loading.switch_off_native", fault)
    with pytest.raises(KeyError, match="a bug"):
        load_checkpoint(folder, keep_layers=2)


def test_large_files_that_are_no_part_of_the_model_are_left_alone(tmp_path):
    build(HEAD).save_pretrained(tmp_path)
    with (tmp_path / "train.json").open("wb") as file:
        file.truncate(150_000_000)
    assert depth_of(load_checkpoint(tmp_path)) == 4
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(150_000_000)
    with pytest.raises(CheckpointError, match="larger than 100 MB"):
        load_checkpoint(tmp_path)


def test_architectures_may_be_a_name_alone(tmp_path):
    build(HEAD).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": HEAD}))
    assert type(load_checkpoint(tmp_path)) is transformers.BertForMaskedLM


def test_a_rate_of_0_of_the_models_own_is_obeyed_or_says_what_is_so(tmp_path):
    build("BartForConditionalGeneration").save_pretrained(tmp_path / "plain")
    load = AutoLayerDropModelForSeq2SeqLM.from_pretrained
    load(tmp_path / "plain", encoder_layerdrop=0.0, layerdrop=0.2).save_pretrained(tmp_path / "trained")
    load(tmp_path / "plain", keep_layers=2).save_pretrained(tmp_path / "cut")
    load(tmp_path / "cut", encoder_layerdrop=0.0)
    with pytest.raises(LayerDropConfigError, match=r"encoder_layerdrop=0\.0 would not be obeyed"):
        load(tmp_path / "trained", encoder_layerdrop=0.0)
    with pytest.raises(LayerDropConfigError, match=r"encoder_layerdrop=0\.5 would not be obeyed"):
        load(tmp_path / "cut", encoder_layerdrop=0.5)
