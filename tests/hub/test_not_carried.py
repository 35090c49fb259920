"""Measurements of stored weights are not said of other weights: of another type, or trained since they were loaded."""

import pytest
import torch

from classifiers import save_classifier
from hf_layerdrop import load_checkpoint, save_pruned, write_recommended
from hf_layerdrop.results.recommended import as_results
from hf_layerdrop.results.table import write_results
from tables import table_for

SAID = "0.8"  # of the best two layers, in the table


@pytest.fixture
def source(tmp_path):
    folder = save_classifier(tmp_path / "sst2")
    write_recommended(table_for(), folder)
    write_results(as_results(table_for()), folder / "depth_results.json")
    return folder


def test_stored_weights_take_their_scores_along(source, tmp_path):
    cut = save_pruned(source, tmp_path / "cut", keep_layers="best:2", dtype="auto")
    assert (cut / "layerdrop.json").exists()
    assert SAID in (cut / "README.md").read_text()


def test_weights_of_another_type_do_not(source, tmp_path):
    cut = save_pruned(source, tmp_path / "cut", keep_layers="best:2", dtype=torch.bfloat16)
    assert not (cut / "layerdrop.json").exists()
    assert "Quality against depth" not in (cut / "README.md").read_text()


def test_a_model_that_was_trained_since_does_not(source, tmp_path):
    model = load_checkpoint(source)
    with torch.no_grad():
        model.classifier.weight.neg_()
    cut = save_pruned(model, tmp_path / "cut", keep_layers=[1, 2])
    assert not (cut / "layerdrop.json").exists()
    assert "Quality against depth" not in (cut / "README.md").read_text()


def test_pickled_weights_say_why_they_do_not(source, tmp_path, caplog):
    torch.save(load_checkpoint(source).state_dict(), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    cut = save_pruned(source, tmp_path / "cut", keep_layers="best:2", use_safetensors=False)
    assert not (cut / "layerdrop.json").exists()
    assert "save them as safetensors first" in caplog.text
