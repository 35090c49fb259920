"""Tiny classifiers as folders on the disk, and a file of rows for them: what tests of commands need."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "not"]


TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def save_classifier(folder, num_labels=2, **settings):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), initializer_range=0.4, num_labels=num_labels, **TINY, **settings)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier") / "sst2")


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    shape = {"d_model": 16, "encoder_layers": 4, "decoder_layers": 3, "encoder_attention_heads": 2}
    shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 20}
    BartForSequenceClassification(BartConfig(init_std=0.3, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    lines = [f"{'good' if i % 3 else 'bad'} film,{int(i % 3 > 0)}" for i in range(20)]
    file = tmp_path / "validation.csv"
    file.write_text("\n".join(["sentence,label", *lines]))
    return file
