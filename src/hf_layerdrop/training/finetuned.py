"""A finetuned checkpoint with its tokenizer, and the data of its task as its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.models.auto import load_checkpoint
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.trainers import check_head, check_vocabulary, positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_finetuned(
    name: str,
    data: TaskData,
    *,
    max_length: int | None,
    max_target_length: int | None,
    loading: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, TaskData]:
    """Load a model and its tokenizer, check that they are of the task, and encode the data for them.

    Args:
        name: A checkpoint folder, or a model on the Hub.
        data: The task and its rows.
        max_length: Inputs of more tokens are cut; None for what is usual for the task.
        max_target_length: The same for texts that are generated.
        loading: More for ``from_pretrained``, such as a revision.

    Raises:
        LayerDropError: One of its kinds, if the checkpoint cannot be loaded or is of another task.
    """
    network = load_checkpoint(name, **(loading or {}))
    check_head(network, data.task, name)  # before the tokenizer, which a model of images has not, and does not lack
    tokenizer = load_tokenizer(name, **(loading or {}))
    check_vocabulary(network, tokenizer, name)
    lengths = {"max_length": max_length, "max_target_length": max_target_length}
    return network, tokenizer, data.task.encode(data, tokenizer, positions=positions_of(network), **lengths)
