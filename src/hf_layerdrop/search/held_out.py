"""The data of a search: checked, and divided so that the winner is scored on rows that took no part in the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, Subset
from transformers import PreTrainedModel, Trainer

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.model_or_trainer import holds_batches
from hf_layerdrop.evaluation.trainer_source import has_own_loader

FROM_TEST_DATASET = "test_dataset"
HELD_OUT_HALF = "a random half of the data, held out of the search"
NO_SPLIT = "none: the data is a single batch, or comes with evaluate; pass test_dataset"


def data_of(model_or_trainer: PreTrainedModel | Trainer, dataset: Any) -> Any:
    """Return the data to search on, in a form that can be read again and again.

    Raises:
        TaskError: If there is none, it is not one set, it is shuffled at each reading, or smaller than a batch.
    """
    if dataset is None and isinstance(model_or_trainer, Trainer):
        dataset = model_or_trainer.eval_dataset
        if dataset is None and has_own_loader(model_or_trainer):
            dataset = model_or_trainer.get_eval_dataloader()
    if dataset is None:
        raise TaskError("search_layers got no dataset: pass batches, a data set of examples, or evaluate=.")
    if isinstance(dataset, dict) and not hasattr(dataset, "select"):
        raise TaskError(f"The evaluation data has several sets ({', '.join(map(str, dataset))}): pass one as dataset.")
    if isinstance(dataset, DataLoader) and isinstance(dataset.sampler, RandomSampler):
        raise TaskError("The DataLoader shuffles, but sub-networks are compared on the same batches: shuffle=False.")
    if isinstance(dataset, DataLoader):
        return dataset
    data = dataset if hasattr(dataset, "__getitem__") else list(dataset)
    if len(data) and not isinstance(data[0], Mapping):
        raise TaskError(f"The data holds a {type(data[0]).__name__}: pass examples or batches, dicts of model inputs.")
    return data


def check_size(data: Any, batch_size: int, name: str, *, holds_examples: bool) -> None:
    """Refuse a set of examples that does not fill a batch, and one with no batch at all.

    Raises:
        TaskError: If there are fewer examples than that.
    """
    if isinstance(data, DataLoader):
        data, batch_size, holds_examples = data.dataset, data.batch_size or 1, True
    smallest = batch_size if len(data) and (holds_examples or not holds_batches(data)) else 1
    if len(data) < smallest:
        raise TaskError(
            f"The {name} set has {len(data)} examples, fewer than a batch of {smallest}: give more data, or a smaller "
            "batch_size."
        )


def halves(data: Any, seed: int) -> tuple[Any, Any] | None:
    """Divide examples, or batches, into two random halves; None if there is only one."""
    if isinstance(data, DataLoader):
        parts = halves(data.dataset, seed) if data.batch_size else halves(list(data), seed)
        return parts and ((_loader_of(data, parts[0]), _loader_of(data, parts[1])) if data.batch_size else parts)
    if len(data) < 2:
        return None
    order = Random(seed).sample(range(len(data)), len(data))
    middle = (len(data) + 1) // 2
    first, second = sorted(order[:middle]), sorted(order[middle:])
    return _rows(data, first), _rows(data, second)


def _rows(data: Any, rows: Sequence[int]) -> Any:
    if isinstance(data, list | tuple):
        return [data[row] for row in rows]
    return data.select(rows) if hasattr(data, "select") else Subset(data, rows)


def _loader_of(like: DataLoader, data: Any) -> DataLoader:
    return DataLoader(data, batch_size=like.batch_size, collate_fn=like.collate_fn, num_workers=like.num_workers)
