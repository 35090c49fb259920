"""sweep and search from the command line on other families than BERT: they measure, or say in a sentence why not."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from classifiers import rows  # noqa: F401 - a fixture
from hf_layerdrop.cli import run
from hf_layerdrop.results.table import read_results

WORDS = ["<pad>", "</s>", "<unk>", "good", "bad", "film", "a", "not", "gut", "schlecht", "Film", "ein"]
GPT2 = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64, "initializer_range": 0.4}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2}
T5 |= {"initializer_factor": 3.0, "decoder_start_token_id": 0}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8}

MODELS = {
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, pad_token_id=0)),
    "gpt2-lm": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "t5-classifier": lambda: T5ForSequenceClassification(T5Config(**T5)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**VIT, patch_size=4)),
}

# model, task, depths of a sweep, depth of a search, a metric
MEASURED = {
    "gpt2": ("classification", "4,2", "2", "accuracy"),
    "gpt2-lm": ("clm", "4,2", "2", "perplexity"),
    "t5": ("translation", "4,2", "encoder=2;decoder=2", "bleu"),
    "t5-classifier": ("classification", "4,2", "encoder=2", "accuracy"),
}


def save(name, folder):
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    if name == "vit":
        return folder
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", bos_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def data(rows, tmp_path):
    """Rows of each task, and the arguments with which a command reads them."""
    texts, pairs = tmp_path / "texts.json", tmp_path / "pairs.json"
    texts.write_text("\n".join(json.dumps({"text": "good film a bad film not " * 5}) for _ in range(30)))
    german = [("gut Film", "good film"), ("schlecht Film", "bad film")]
    pairs.write_text(
        "\n".join(json.dumps({"translation": dict(zip(("de", "en"), german[i % 2], strict=True))}) for i in range(20))
    )
    columns = ["--text-columns", "sentence", "--label-column", "label"]
    return {
        "classification": ["--validation-file", str(rows), *columns],
        "clm": ["--task", "clm", "--validation-file", str(texts), "--max-length", "16"],
        "translation": [
            *("--task", "translation", "--validation-file", str(pairs), "--text-columns", "de,en"),
            *("--max-target-length", "6"),
        ],
    }


@pytest.mark.parametrize("name", MEASURED)
def test_sweep_and_search_measure(name, data, tmp_path):
    task, depths, depth, metric = MEASURED[name]
    model, given = str(save(name, tmp_path / name)), [*data[task], "--batch-size", "4"]
    assert run(["sweep", model, *given, "--depths", depths, "--output", str(tmp_path / "swept")]) == 0
    results = read_results(tmp_path / "swept/depth_results.json")
    assert [len(kept) for result in results for kept in result.keep_layers.values()] == (
        [4, 4, 2, 2] if "t5" in name else [4, 2]
    )
    assert len({result.metrics["loss"] for result in results}) == 2
    assert all(metric in result.metrics for result in results)

    selection, pruned = tmp_path / "selection.json", tmp_path / "pruned"
    assert run(["search", model, *given, "--depth", depth, "--output", str(selection)]) == 0
    assert run(["prune", model, "--keep-layers", str(selection), "--output", str(pruned)]) == 0
    config = json.loads((pruned / "config.json").read_text())
    assert config["n_layer" if "gpt2" in name else "num_layers"] == 2
    if "t5" in name:
        assert config["num_decoder_layers"] == (4 if name == "t5-classifier" else 2)


REFUSED = [
    ("vit", "classification", "is a ViTForImageClassification, .*images or speech are measured from Python"),
    (
        "vit",
        "clm",
        "is a ViTForImageClassification, but task clm measures models with the head of AutoModelForCausalLM",
    ),
    ("gpt2-lm", "classification", "is a GPT2LMHeadModel, but without a --task of another kind"),
    ("gpt2-lm", "translation", "is a GPT2LMHeadModel, but task translation measures .* AutoModelForSeq2SeqLM"),
    ("t5", "clm", "is a T5ForConditionalGeneration, but task clm measures .* AutoModelForCausalLM"),
]


@pytest.mark.parametrize("command", ["sweep", "search"])
@pytest.mark.parametrize(("name", "task", "said"), REFUSED)
def test_what_does_not_apply_is_refused_in_one_sentence(name, task, said, command, data, tmp_path, capsys):
    more = ["--depth", "encoder=2" if name == "t5" else "2"] if command == "search" else []
    output = tmp_path / "output"
    capsys.readouterr()
    model = str(save(name, tmp_path / name))
    assert run([command, model, *data[task], *more, "--output", str(output)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert not output.exists()


@pytest.mark.parametrize("task", ["classification", "clm"])
def test_training_a_model_of_images_on_texts_is_refused(task, data, tmp_path, capsys):
    """By its type, and not for the tokenizer that it does not lack."""
    model = str(save("vit", tmp_path / "vit"))
    given = data[task]
    file = given[given.index("--validation-file") + 1]
    arguments = ["train", "--model", model, *given, "--train-file", file, "--output_dir", str(tmp_path / "output")]
    capsys.readouterr()
    assert run(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert re.search("is of model type 'vit', for which transformers has no AutoModelFor", line), line
    assert not (tmp_path / "output").exists()
