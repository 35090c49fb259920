"""A teacher that is an adapter is refused before anything is trained: its student could not be saved."""

import pytest

from classifiers import model, rows  # noqa: F401 - fixtures
from hf_layerdrop import load_checkpoint
from strangers import refused

peft = pytest.importorskip("peft")


def test_it_is_refused_before_the_training(model, rows, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(load_checkpoint(model), config).save_pretrained(adapter)
    for path in model.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            (adapter / path.name).write_bytes(path.read_bytes())
    files = ["--train-file", rows, "--validation-file", rows, "--text-columns", "sentence", "--max_steps", "1"]
    said = refused(capsys, "distill", adapter, *files, "--use_cpu", "--output", tmp_path / "student")
    assert "merge_and_unload" in said
    assert not (tmp_path / "student").exists()
