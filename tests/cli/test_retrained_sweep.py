"""Sets of a checkpoint whose weights were trained again are not mixed with those of before."""

import torch
from transformers import BertForSequenceClassification

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop import read_recommended
from hf_layerdrop.cli import run


def test_a_sweep_of_other_depths_after_training_takes_the_place(tmp_path, rows):
    model = save_classifier(tmp_path / "sst2")
    words = ["sweep", str(model), "--task", "sst2", "--validation-file", str(rows)]
    assert run([*words, "--depths", "4,3", "--output", str(tmp_path / "first")]) == 0
    network = BertForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        network.classifier.weight.neg_()
    network.save_pretrained(model)
    assert run([*words, "--depths", "2", "--output", str(tmp_path / "again")]) == 0
    assert [one.keep_layers["encoder"] for one in read_recommended(model).sets] == [[0, 3]]
