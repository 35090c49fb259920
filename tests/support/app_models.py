"""Tiny checkpoints of every head that the app shows, with a tokenizer of words, as folders on the disk."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import BartConfig, BertConfig, LlamaConfig

from hf_layerdrop.checkpoints.tokenizers import train_tokenizer

TEXTS = [
    "the old bridge was built of stone",
    "it was opened in 1894 and a second one of steel followed",
    "when was the bridge opened by a good king",
]
LAYERS, POSITIONS = 4, 48
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": LAYERS}
BART = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS}
SHOWN = {
    "BertForSequenceClassification": ("a good bridge", ""),
    "BertForMaskedLM": ("the [MASK] was built of stone", ""),
    "BertForQuestionAnswering": ("when was it opened", "the old bridge was opened in 1894"),
    "BertModel": ("the old bridge", "a second one of steel\nwhen was it opened"),
    "LlamaForCausalLM": ("the old bridge", ""),
    "BartForConditionalGeneration": ("the old bridge was built", ""),
}


def save_model(folder, head):
    """Write a tiny model of a head, and its tokenizer."""
    kind = "wordpiece" if head.startswith("Bert") else "bpe-marked" if head.startswith("Bart") else "bpe"
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=400, max_length=POSITIONS)
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    if head.startswith("Bart"):
        config = BartConfig(**BART, **common, **special, init_std=0.4, decoder_start_token_id=special["eos_token_id"])
        config.forced_eos_token_id = None
    elif head.startswith("Llama"):
        config = LlamaConfig(**SMALL, **common, **special, num_key_value_heads=2, initializer_range=0.4)
    else:
        config = BertConfig(**SMALL, **common, pad_token_id=special["pad_token_id"], initializer_range=0.4)
    torch.manual_seed(0)
    getattr(transformers, head)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def app_folder(tmp_path_factory):
    """Return a function that writes the checkpoint of a head once."""
    written = {}

    def folder(head):
        if head not in written:
            written[head] = save_model(tmp_path_factory.mktemp("app") / head, head)
        return written[head]

    return folder
