"""Depths that nobody names and a model cannot be cut to are left out; those that are named are refused at once."""

import pytest
import torch
from transformers import BertTokenizer, ModernBertConfig, ModernBertForSequenceClassification

from classifiers import TINY, WORDS, rows  # noqa: F401 - a fixture
from hf_layerdrop import evaluate_depths
from hf_layerdrop.cli import run
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.results.table import read_results


def modern_bert():
    """Build a model whose first layer lacks a norm, so that no other one can come first: a depth of 1 is the last."""
    numbers = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], 0)
    return ModernBertForSequenceClassification(ModernBertConfig(vocab_size=len(WORDS), **TINY, **numbers))


def test_all_depths_are_those_that_are_possible(tmp_path, rows, capsys):
    folder = tmp_path / "modern"
    modern_bert().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    words = ["--task", "sst2", "--validation-file", str(rows), "--output", str(tmp_path / "out")]
    assert run(["sweep", str(folder), *words]) == 0
    assert [result.depth for result in read_results(tmp_path / "out" / "depth_results.json")] == [4, 3, 2]
    assert "Left out: layers 3," in capsys.readouterr().out


def test_what_is_named_is_refused_before_anything_runs():
    model, ran = modern_bert(), []
    model.register_forward_hook(lambda *_: ran.append(1))
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    with pytest.raises(UnsupportedModelError, match=r"layers \[3\]"):
        evaluate_depths(model, [batch], depths=[4, 1])
    assert not ran
    assert evaluate_depths(model, [batch], depths=[4, 2])[1].depth == 2
