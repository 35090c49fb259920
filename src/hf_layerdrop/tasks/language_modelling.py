"""Language modelling: causal, and with masked tokens (the pretraining of BERT-like models).

Texts are joined and cut into blocks of equal length. A text that does not end with a line break is a document of its
own and is closed by the tokenizer's end token; lines that keep theirs are taken as running text.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import load_metric_of
from hf_layerdrop.tasks.columns import texts_in
from hf_layerdrop.tasks.task import Encoding, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


MASKED = 0.15
MASK_SEED = 0  # of the tokens that are masked for scoring, which are the same in every run
IGNORED = -100
_BATCH = 1000


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Keep the text; empty rows say nothing."""
    from datasets import Dataset

    texts = [text for text in texts_in(rows, task.text_columns[0], where) if text.strip()]
    if not texts:
        raise TaskError(f"{where} has no text in column {task.text_columns[0]!r}; give a file that has some.")
    return Dataset.from_dict({"text": texts})


def encode_causal(rows: Dataset, encoding: Encoding) -> Dataset:
    """Cut the joined texts into blocks, each the labels of itself; the model shifts them."""
    blocks = list(_blocks(rows, encoding, encoding.max_length))
    return _as_rows({"input_ids": blocks, "labels": blocks})


def encode_masked(rows: Dataset, encoding: Encoding) -> Dataset:
    """Cut the joined texts into blocks between special tokens; what is scored is masked here, once and for all."""
    if encoding.tokenizer.mask_token is None:
        raise TaskError(
            f"The tokenizer {encoding.tokenizer.name_or_path!r} has no mask token, which masked language modelling "
            "needs: take task clm, or a model that was trained with one."
        )
    before, after = _around(encoding.tokenizer)
    special = len(before) + len(after)
    blocks = [[*before, *block, *after] for block in _blocks(rows, encoding, encoding.max_length - special)]
    masks = [[1] * len(before) + [0] * (len(block) - special) + [1] * len(after) for block in blocks]
    if encoding.training:
        return _as_rows({"input_ids": blocks, "special_tokens_mask": masks})
    return _as_rows(_masked(blocks, masks, encoding.tokenizer))


def _blocks(rows: Dataset, encoding: Encoding, length: int) -> Iterator[list[int]]:
    """Go through the blocks; what is left at the end is shorter, and is not trained on."""
    import numpy

    tokens = numpy.concatenate(list(_tokens(rows, encoding.tokenizer)))
    if len(tokens) < (length if encoding.training else 2):
        what = "training" if encoding.training else "validation"
        raise TaskError(
            f"The {what} texts have {len(tokens)} tokens in all, fewer than one input of {length}: give more text, or "
            "a smaller --max-length."
        )
    end = len(tokens) - len(tokens) % length if encoding.training else len(tokens)
    for begin in range(0, end, length):
        if end - begin > 1:  # nothing can be predicted from a single token
            yield tokens[begin : begin + length].tolist()


def _tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Any]:
    import numpy

    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    for begin in range(0, len(rows), _BATCH):
        texts = rows[begin : begin + _BATCH]["text"]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for text, tokens in zip(texts, encoded, strict=True):
            closed = end is not None and not text.endswith("\n")
            yield numpy.asarray([*tokens, end] if closed else tokens, dtype=numpy.int32)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    body = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begin = next((place for place in range(len(whole)) if whole[place : place + len(body)] == body), 0)
    return whole[:begin], whole[begin + len(body) :]


def _masked(
    blocks: Sequence[list[int]], masks: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[list[int]]]:
    from transformers import DataCollatorForLanguageModeling

    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED, seed=MASK_SEED)
    masked: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for block, special in zip(blocks, masks, strict=True):
        row = mask([{"input_ids": block, "special_tokens_mask": special}])
        for name, values in masked.items():
            values.append(row[name][0].tolist())
    return masked


def _as_rows(columns: dict[str, list[list[int]]]) -> Dataset:
    from datasets import Dataset, Features, Sequence, Value

    return Dataset.from_dict(columns, features=Features({name: Sequence(Value("int32")) for name in columns}))


def causal_collator(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """Make a batch; only the last block of a validation set is padded."""
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


class MaskingCollator:
    """Mask tokens anew in every epoch, as RoBERTa does; rows that are masked already are only padded.

    The mask is a function of the batch alone, which is another in every epoch. A global generator would not do: batches
    are made ahead of the steps, so that a resumed run would mask other tokens than the uninterrupted one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: Any = None) -> None:
        from transformers import DataCollatorForLanguageModeling

        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
        self._pad = causal_collator(tokenizer)

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Make a batch."""
        import torch

        if "labels" in rows[0]:
            return self._pad(rows)
        content = array("q", [token for row in rows for token in row["input_ids"]])
        self._mask.generator = torch.Generator().manual_seed(crc32(content.tobytes()))
        return self._mask(rows)


def token_losses(logits: Any, labels: Any, *, shift: bool) -> Any:
    """Reduce the logits of each row to the sum of its tokens' losses and the number of its tokens."""
    import torch

    logits = logits[0] if isinstance(logits, tuple) else logits
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.double().sum(dim=1), (labels != IGNORED).double().sum(dim=1)], dim=1)


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the perplexity, from what `token_losses` leaves."""
    metric = load_metric_of("language", *data.task.metrics)

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        losses, tokens = evaluated.predictions.T
        return metric.compute(predictions=losses, references=tokens)

    return compute


CAUSAL = Kind(
    "causal language modelling",
    "CausalLM",
    check,
    encode_causal,
    causal_collator,
    compute_metrics,
    reduce=partial(token_losses, shift=True),
    max_length=256,
    has_plain_text=True,
    needs_padding=False,
)
MASKED_TOKENS = replace(
    CAUSAL,
    name="masked language modelling",
    head="MaskedLM",
    encode=encode_masked,
    collator=MaskingCollator,
    reduce=partial(token_losses, shift=False),
    max_length=128,
    needs_padding=True,
)
