"""Cut checkpoints of three shapes at two depths, and the code of docs/serving.md, run as a user types it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from conftest import VOCABULARY, batch_for, build
from hf_layerdrop import save_pruned
from readme_blocks import find_blocks

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
NEW_TOKENS = 6
CLASSES = {
    "bert": "BertForSequenceClassification",
    "bart": "BartForConditionalGeneration",
    "llama": "LlamaForCausalLM",
}
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
# Of each shape two depths, none of them the first layers.
CUTS: dict[str, list[Any]] = {
    "bert": [[1, 3], [2]],
    "bart": [{"encoder": [1, 3], "decoder": [0, 3]}, {"encoder": [2], "decoder": [3]}],
    "llama": [[1, 3], [2]],
}


def runtime(module: str, install: str) -> Any:
    """Import a runtime, or skip the tests of a module with the line that installs it; `make serving` sets it up."""
    if os.environ.get("SERVING") == module:
        return importlib.import_module(module)
    reason = f"{module} is not installed: pip install {install}, or `make serving` for all in environments of their own"
    return pytest.importorskip(module, reason=reason)


def whole(shape: str) -> PreTrainedModel:
    """Build a model of four layers; what it computes depends on each of them."""
    if shape != "llama":
        return build(
            CLASSES[shape], **({"decoder_start_token_id": 2, "forced_eos_token_id": None} if shape == "bart" else {})
        )
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, num_hidden_layers=4, initializer_range=0.3, pad_token_id=1, eos_token_id=2, **size
        )
    ).eval()


def cut_folder(shape: str, depth: int, folder: Path) -> Path:
    """Write one of the `CUTS` as a plain checkpoint with a tokenizer."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    return save_pruned(whole(shape), folder / "cut", keep_layers=CUTS[shape][depth], tokenizer=tokenizer)


def plain(shape: str, folder: Path) -> PreTrainedModel:
    """Load a cut as somebody who has transformers alone."""
    model = getattr(transformers, CLASSES[shape]).from_pretrained(folder).eval()
    model.config.use_cache = False  # as the page says
    return model


def batch(shape: str, length: int = 9) -> dict[str, torch.Tensor]:
    """Return rows of which one has padding; ``length`` up to 9."""
    found = {name: values[:, -length:] for name, values in batch_for(CLASSES[shape]).items()}
    return {**found, "decoder_input_ids": found["input_ids"].flip(0)} if shape == "bart" else found


def code_of(heading: str, number: int = 0) -> str:
    """Return a Python block of the page, the first below a heading if nothing else is said."""
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert found, f"docs/serving.md has no part {heading!r}"
    blocks = [block for block in find_blocks(rest.partition("\n## ")[0]) if block.language == "python"]
    return blocks[number].code


def typed(heading: str, number: int = 0, **given: Any) -> dict[str, Any]:
    """Run a block of the page with these names; return all names it leaves."""
    names = {"torch": torch, **given}
    exec(compile(code_of(heading, number), f"docs/serving.md, {heading}", "exec"), names)
    return names


def assert_served(found: Any, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Compare what a runtime gave with the model itself, at the positions that are no padding."""
    with torch.no_grad():
        expected = model(**inputs).logits
    logits = torch.as_tensor(found)
    assert logits.shape == expected.shape
    if expected.dim() == 3 and "decoder_input_ids" not in inputs:
        mask = inputs["attention_mask"].bool()
        logits, expected = logits[mask], expected[mask]
    assert (logits - expected).abs().max() <= 1e-4
    assert expected.std() > 0.05, "such a model could not be told from another"
