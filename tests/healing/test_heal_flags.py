"""Flags of TrainingArguments that the defaults of healing must not overrule."""

import pytest
import torch
from safetensors.torch import load_file

from classifiers import model, rows  # noqa: F401 - fixtures
from hf_layerdrop.cli import run


@pytest.mark.parametrize("length", [["--num_train_epochs", "1"], ["--num-train-epochs=1"]])
def test_epochs_are_trained_where_they_are_asked_for(length, model, rows, tmp_path):
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    flags = ["--use_cpu", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3"]
    weights = []
    for name, steps in (("epoch", length), ("steps", ["--max_steps", "5"])):  # of 20 rows
        output = ["--output", str(tmp_path / name), "--keep-layers", "3", "--method", "whole"]
        assert run(["heal", str(model), *files, *flags, *output, *steps]) == 0
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
