"""Models whose layers are worth choosing among, data for them, and a search on all of it."""

from __future__ import annotations

import torch

from conftest import batch_for
from hf_layerdrop.search.search import search_layers

BERT = "BertForSequenceClassification"


BART = "BartForConditionalGeneration"


def labelled(head: str = BERT, batches: int = 2, first: int = 0) -> list[dict[str, torch.Tensor]]:
    data = []
    for seed in range(first, first + batches):
        batch = batch_for(head, seed)
        labels = torch.tensor([0, 1, 1]) if "Sequence" in head else batch["input_ids"]
        data.append({**batch, "labels": labels})
    return data


def examples(count: int, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(5, 60, (8,), generator=generator), "labels": torch.tensor(row % 2)}
        for row in range(count)
    ]


def search(model, data=None, **settings):
    """Search on all of the data: what takes part in the choice is then known."""
    settings = {"depth": 2, "metric": "loss", "test_dataset": labelled(), "progress": False, **settings}
    return search_layers(model, labelled() if data is None else data, **settings)


def half(head: str) -> dict[str, int] | int:
    return {"encoder": 2, "decoder": 3} if head == BART else 2


def tokens() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
