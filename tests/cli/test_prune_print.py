"""`prune --print llama.cpp`: the line by which llama.cpp makes a cut, and where that would be another model."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config, T5Config, T5EncoderModel

from classifiers import bart, model  # noqa: F401 - fixtures
from hf_layerdrop.cli import run

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**TINY, num_hidden_layers=6, initializer_range=0.3),
    "qwen2": Qwen2Config(**TINY, num_hidden_layers=6, initializer_range=0.3),  # fields of single layers, all alike
    "gemma3": Gemma3TextConfig(**TINY, num_hidden_layers=6, head_dim=8),  # its last layer is of another kind
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) / "a model" for name in CONFIGS}
    for name, folder in made.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    made["t5"] = tmp_path_factory.mktemp("t5") / "encoder"
    T5EncoderModel(T5Config(vocab_size=60, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=4)).save_pretrained(
        made["t5"]
    )
    return made


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("spec", "dropped"), [("0,2,5", "1,3,4"), ("first:2", "2,3,4,5"), ("1:", "0")])
def test_the_line_lists_the_layers_that_are_not_kept(folders, family, spec, dropped, capsys):
    before = sorted(folders[family].rglob("*"))
    code = run(["prune", str(folders[family]), "--keep-layers", spec, "--print", "llama.cpp"])
    out, err = capsys.readouterr()
    assert code == 0, err
    kept = 6 - len(dropped.split(","))
    files = ["a model.gguf", f"a model-{kept}-layers.gguf"]
    assert shlex.split(out) == ["llama-quantize", "--prune-layers", dropped, *files, "COPY"]
    assert out.count("\n") == 1
    assert sorted(folders[family].rglob("*")) == before


def test_the_measured_set_of_a_depth_is_found(folders, capsys):
    record = {"keep_layers": {"layers": [1, 4]}}
    selection = folders["llama"].parent / "selection.json"
    selection.write_text(json.dumps(record))
    assert run(["prune", str(folders["llama"]), "--keep-layers", str(selection), "--print", "llama.cpp"]) == 0
    assert "--prune-layers 0,2,3,5 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("llama", ["all", "--print", "llama.cpp"], "keeps all 6 layers"),
        ("gemma3", ["0,5", "--print", "llama.cpp"], "says by layer_types what single layers are"),
        ("t5", ["1,2", "--print", "llama.cpp"], "has in its layer 0 what the others borrow"),
        ("bart", ["2", "--print", "llama.cpp"], "has the stacks encoder and decoder"),
        ("llama", ["2", "--print", "onnx"], "llama.cpp"),
        ("llama", ["2", "--print", "llama.cpp", "--output", "OUT"], "one of both; see hf-layerdrop prune --help"),
        ("llama", ["2"], "one of both; see hf-layerdrop prune --help"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused_in_one_line(folders, bart, name, words, said, capsys, tmp_path):
    folder = {**folders, "bart": bart}[name]
    words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    assert run(["prune", str(folder), "--keep-layers", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(said, err), err
    assert not (tmp_path / "out").exists()


def test_the_kept_first_block_of_t5_is_enough(folders, capsys):
    assert run(["prune", str(folders["t5"]), "--keep-layers", "0,3", "--print", "llama.cpp"]) == 0
    assert "--prune-layers 1,2 encoder.gguf encoder-2-layers.gguf COPY" in capsys.readouterr().out
