"""The perplexity is of tokens: neither how they are divided into batches matters, nor how a head counts its labels."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from conftest import DEPTH
from evaluation_models import network
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.search.overfitting import share_between
from hf_layerdrop.search.search import search_layers
from rows import arguments

SHIFTS = {
    "LlamaForCausalLM": True,
    "GPT2LMHeadModel": True,
    "BertLMHeadModel": True,
    "BartForCausalLM": False,
    "BertForMaskedLM": False,
}
LENGTHS = (9, 3, 9, 5, 4, 7, 2)


def rows() -> list[dict[str, torch.Tensor]]:
    """Return rows of one length whose labels stand for very different numbers of tokens."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(5, 60, (9,), generator=generator)
        labels = ids.clone()
        labels[length:] = -100
        labels[0] = -100 if number == 1 else labels[0]
        found.append({"input_ids": ids, "labels": labels})
    return found


def perplexity(model: Any, data: list[dict[str, torch.Tensor]], *, shifts: bool) -> float:
    nats, tokens = 0.0, 0
    for row in data:
        with torch.no_grad():
            logits, labels = model(input_ids=row["input_ids"][None], use_cache=False).logits[0], row["labels"]
        if shifts:
            logits, labels = logits[:-1], labels[1:]
        nats += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        tokens += int((labels != -100).sum())
    return math.exp(nats / tokens)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("with_trainer", [False, True])
@pytest.mark.parametrize("head", SHIFTS)
def test_perplexity_is_of_tokens(head: str, with_trainer: bool, batch_size: int, tmp_path: Path) -> None:
    model, data = network(head), rows()
    settings = arguments(tmp_path, per_device_eval_batch_size=batch_size)
    source = Trainer(model, settings, eval_dataset=data) if with_trainer else model
    found = evaluate_depths(
        source,
        None if with_trainer else data,
        depths=[DEPTH, [0, 2]],
        metric="perplexity",
        batch_size=batch_size,
        progress=False,
    )
    for kept, result in zip((None, [0, 2]), found, strict=True):
        cut = copy.deepcopy(model)
        if kept:
            prune_layers(cut, kept)
        assert result.metrics["perplexity"] == pytest.approx(perplexity(cut, data, shifts=SHIFTS[head]), rel=1e-5)
        assert abs(result.metrics["perplexity"] / math.exp(result.metrics["loss"]) - 1) > 1e-3  # another number


def test_a_search_goes_by_the_perplexity_of_tokens() -> None:
    model, data = network("LlamaForCausalLM"), rows()
    found = search_layers(
        model,
        data,
        test_dataset=data,
        metric="perplexity",
        strategy="exhaustive",
        depth=2,
        batch_size=2,
        progress=False,
    )
    assert not found.greater_is_better
    assert found.whole_score == found.whole_test_score == pytest.approx(perplexity(model, data, shifts=True), rel=1e-5)
    prune_layers(model, found.keep_layers)
    assert found.score == pytest.approx(perplexity(model, data, shifts=True), rel=1e-5)


@pytest.mark.parametrize("drawn", [1, 8, 40])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_interval_of_a_share_holds_it_in_95_of_100_cases(share: float, drawn: int) -> None:
    chances = [math.comb(drawn, good) * share**good * (1 - share) ** (drawn - good) for good in range(drawn + 1)]
    bounds = [share_between(good, drawn) for good in range(drawn + 1)]
    covered = sum(chance for chance, (low, high) in zip(chances, bounds, strict=True) if low <= share <= high)
    assert covered >= 0.95
    assert all(low <= good / drawn <= high for good, (low, high) in enumerate(bounds))


def test_of_few_draws_an_interval_is_told_and_no_percentage() -> None:
    model, data = network("LlamaForCausalLM", num_hidden_layers=8), rows()
    settings = {"test_dataset": data, "metric": "loss", "depth": 4, "batch_size": 4, "progress": False}
    found = search_layers(model, data, strategy="first", **settings)
    assert not found.share_is_exact
    low, high = found.share_between
    assert low <= found.share_as_good <= high
    assert high - low > 0.2  # eight draws say no more
    assert f"{low:.1%} to {high:.1%} of 70 sets" in found.as_good
    every = search_layers(model, data, strategy="exhaustive", **settings)
    assert every.share_between == (every.share_as_good, every.share_as_good)
    assert " to " not in every.as_good
    assert type(found).from_dict(found.to_dict()) == found
    older = {name: value for name, value in found.to_dict().items() if name != "share_between"}
    assert "0.0% to 100.0%" in type(found).from_dict(older).as_good
