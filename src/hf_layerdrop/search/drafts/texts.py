"""What the whole model writes after each prompt, and where a sub-network says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from hf_layerdrop.errors import TaskError, UnsupportedModelError
from hf_layerdrop.evaluation.model_or_trainer import eval_mode

OBJECTIVE = "accepted_tokens_per_second"


@dataclass(frozen=True)
class Text:
    """What the whole model read and wrote, as token ids, and where the first token stands that it wrote."""

    sequence: torch.Tensor
    start: int

    @property
    def prompt(self) -> torch.Tensor:
        """What it read."""
        return self.sequence[: self.start]


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot generate with a sub-network of its own as a draft.

    Raises:
        UnsupportedModelError: If it does not generate, or has an encoder.
    """
    if not model.can_generate():
        raise UnsupportedModelError(
            f"objective is {OBJECTIVE!r}, but a {type(model).__name__} does not generate: give a model with a language "
            "modelling head, or leave objective out."
        )
    if model.config.is_encoder_decoder:
        # transformers 5.24 feeds such a draft its whole text in each round, behind a cache that has most of it.
        raise UnsupportedModelError(
            f"objective is {OBJECTIVE!r}, but in assisted generation of an encoder-decoder transformers lets the draft "
            "read tokens twice, so that it does not draft what its layers would say: give a model without an encoder."
        )


def read_prompts(model: PreTrainedModel, dataset: Any, max_new_tokens: int) -> list[torch.Tensor]:
    """Return the token ids of each prompt, without padding, of a data set of examples or of batches.

    Raises:
        UnsupportedModelError: If the model does not generate, or has an encoder.
        TaskError: If there are no prompts, or one is empty or too long for what is to be generated.
    """
    check_model(model)
    if isinstance(dataset, Mapping):  # one batch: what a tokenizer makes of several texts
        dataset = [dataset]
    rows = [] if dataset is None else [row for entry in dataset for row in _rows_of(entry)]
    if not rows:
        raise TaskError(
            f"objective is {OBJECTIVE!r}, but there are no prompts: give what the tokenizer makes of some as dataset."
        )
    for place, row in enumerate(rows):
        _check_length(model, place, len(row), max_new_tokens)
    return rows


def write_texts(model: PreTrainedModel, prompts: Sequence[torch.Tensor], max_new_tokens: int) -> list[Text]:
    """Let the whole model go on after each prompt, greedily."""
    settings = generation_settings(model, max_new_tokens)
    with eval_mode(model):
        return [_written(model, prompt, settings) for prompt in prompts]


def generation_settings(model: PreTrainedModel, max_new_tokens: int) -> dict[str, Any]:
    """Return what greedy generation is called with."""
    config: Any = model.generation_config
    pad = 0 if config.pad_token_id is None else config.pad_token_id  # of one row, which is never padded
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "pad_token_id": pad,
        "return_dict_in_generate": False,
    }


def batches_of(texts: Sequence[Text], batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Return inputs in which a sub-network reads the texts, padded at the end of each row."""
    read = [text.sequence[:-1] for text in texts]
    rows = [read[begin : begin + batch_size] for begin in range(0, len(read), batch_size)]
    return [{"input_ids": _padded(some), "attention_mask": _padded(list(map(torch.ones_like, some)))} for some in rows]


def agreement(
    model: PreTrainedModel, batches: Sequence[Mapping[str, torch.Tensor]], texts: Sequence[Text]
) -> list[list[bool]]:
    """Tell for each generated token of each text whether the model says the same after those before it."""
    said: list[torch.Tensor] = []
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        said.extend(model(**inputs, use_cache=False).logits.argmax(-1).cpu())
    return [
        (row[text.start - 1 : len(text.sequence) - 1] == text.sequence[text.start :]).tolist()
        for row, text in zip(said, texts, strict=True)
    ]


def _rows_of(entry: Any) -> list[torch.Tensor]:
    """Return the rows of a batch, or an example as the one row that it is."""
    if not isinstance(entry, Mapping) or "input_ids" not in entry:
        raise TaskError(f"A prompt is {entry!r:.60}: give what the tokenizer makes of it, a dict with input_ids.")
    ids = entry["input_ids"]
    if isinstance(ids, list) and ids and isinstance(ids[0], list):  # rows that nobody has padded
        masks = entry.get("attention_mask", [[1] * len(row) for row in ids])
        return [torch.tensor(row)[torch.tensor(mask).bool()] for row, mask in zip(ids, masks, strict=True)]
    tokens = torch.as_tensor(ids)
    mask = torch.as_tensor(entry.get("attention_mask", torch.ones_like(tokens))).bool()
    if tokens.dim() == 1:
        tokens, mask = tokens[None], mask[None]
    return [row[kept].cpu() for row, kept in zip(tokens, mask, strict=True)]


def _check_length(model: PreTrainedModel, place: int, length: int, new: int) -> None:
    if not length:
        raise TaskError(f"Prompt {place} has no tokens: give each at least one.")
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(positions, int) and length + new > positions:
        raise TaskError(
            f"Prompt {place} has {length} tokens, and with max_new_tokens={new} it takes {length + new} positions, but "
            f"the model has {positions}: shorten the prompt or generate less."
        )


def _written(model: PreTrainedModel, prompt: torch.Tensor, settings: Mapping[str, Any]) -> Text:
    tokens = prompt[None].to(model.device)
    generate: Any = model.generate
    sequence = generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[0].cpu()
    return Text(sequence, len(prompt))


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True)
