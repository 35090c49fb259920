"""Text to text with an encoder-decoder: translation, summarization, long answers.

What is scored is what the model generates, against the texts of the data as they are, not as the tokenizer knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import load_metric_of
from hf_layerdrop.tasks.classification import CUT, was_cut, without_cut
from hf_layerdrop.tasks.columns import texts_in
from hf_layerdrop.tasks.task import ROW_NUMBERS, Encoding, Generation, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

_CUT_TARGET = "target_was_cut"  # column that encoding adds for a moment, as `CUT`


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Return ``source``, ``target`` and ``references``: of a list of right texts, the first is the target."""
    from datasets import Dataset

    source, target = task.text_columns
    values = list(rows[target])
    if values and isinstance(values[0], list):
        references = [_several(value, row, target, where) for row, value in enumerate(values)]
    else:
        references = [[text] for text in texts_in(rows, target, where)]
    targets = [row[0] for row in references]
    return Dataset.from_dict({"source": texts_in(rows, source, where), "target": targets, "references": references})


def _several(value: Any, row: int, column: str, where: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise TaskError(f"{where} has {value!r} in row {row} of column {column!r}; every row needs a text.")
    return value


def encode(rows: Dataset, encoding: Encoding) -> Dataset:
    """Tokenize sources and targets; scored rows get a number by which their references are found."""
    job = partial(
        _encode, tokenizer=encoding.tokenizer, length=encoding.max_length, target_length=encoding.max_target_length
    )
    encoded = without_cut(rows.map(job, batched=True, remove_columns=rows.column_names, desc="Tokenizing"), encoding)
    encoding.cut_targets += sum(encoded[_CUT_TARGET])
    encoded = encoded.remove_columns(_CUT_TARGET)
    if encoding.training:
        return encoded
    first = len(encoding.examples)
    encoding.examples.extend(rows["references"])
    return encoded.add_column(ROW_NUMBERS, list(range(first, first + len(rows))))


def _encode(
    rows: Mapping[str, list[str]], *, tokenizer: PreTrainedTokenizerBase, length: int, target_length: int
) -> Mapping[str, Any]:
    sources = tokenizer(rows["source"], truncation=True, max_length=length)
    targets = tokenizer(text_target=rows["target"], truncation=True, max_length=target_length)
    cut, cut_targets = was_cut(sources, len(rows["source"])), was_cut(targets, len(rows["target"]))
    return {**sources, "labels": targets["input_ids"], CUT: cut, _CUT_TARGET: cut_targets}


def collator(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """Pad sources and targets, and make the decoder's inputs."""
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, model=model)


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Compare generated texts with the references of their rows; ``signatures`` says how, once it was called."""
    metric = load_metric_of("text", *data.task.metrics)

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        texts = generated_texts(evaluated.predictions, tokenizer)
        return metric.compute(predictions=texts, references=[data.examples[row] for row in evaluated.label_ids])

    compute.signatures = metric.signatures  # type: ignore[attr-defined]
    return compute


def generated_texts(predictions: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Turn generated tokens, padded with -100 where batches differ in length, into texts."""
    import numpy

    tokens = predictions[0] if isinstance(predictions, tuple) else predictions
    tokens = numpy.where(tokens < 0, tokenizer.pad_token_id, tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


SEQUENCE_TO_SEQUENCE = Kind(
    "text to text",
    "Seq2SeqLM",
    check,
    encode,
    collator,
    compute_metrics,
    generation=Generation(),
    numbers_rows=True,
)
