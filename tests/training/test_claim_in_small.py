"""What LayerDrop is for, in seconds: sub-networks work without finetuning. `make claim` shows it on real weights."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import torch

from conftest import build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_step, sub_network

HEAD, LAYERS, STEPS = "BertForSequenceClassification", 6, 120


def rows(seed: int, count: int = 32) -> dict[str, torch.Tensor]:
    """Return sequences, labelled by whether most of their tokens are small."""
    ids = torch.randint(5, 60, (count, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ((ids < 32).sum(1) >= 5).long()}


def accuracy_of_depths(rate: float) -> tuple[float, float]:
    """Train at equal layer forwards; return the accuracy of the whole and the mean over sets of half the layers."""
    model = build(HEAD, num_hidden_layers=LAYERS, initializer_range=0.1).train()
    inject_layerdrop(model, LayerDropConfig(rate))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(round(STEPS / (1 - rate))):
        set_step(model, step)
        model(**rows(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    unseen, found = rows(10**6, 400), []
    for kept in [range(LAYERS), *combinations(range(LAYERS), LAYERS // 2)]:
        with torch.no_grad(), sub_network(model, list(kept)):
            right = model(**unseen).logits.argmax(-1) == unseen["labels"]
        found.append(right.float().mean().item())
    return found[0], fmean(found[1:])


def test_half_of_the_layers_work_after_layerdrop_and_not_without() -> None:
    whole, half = accuracy_of_depths(0.25)
    plain_whole, plain_half = accuracy_of_depths(0.0)
    assert min(whole, plain_whole) >= 0.95
    assert half >= plain_half + 0.05
