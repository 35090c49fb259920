"""What each row of the validation set scored, small enough for a journal: paired differences are made of it later."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reproduction.errors import ReproductionError

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from hf_layerdrop.tasks.task import TaskData

Array = Any  # numpy's
NGRAMS = 4  # of BLEU

# Metric -> kind of numbers and how many of them a row has.
KINDS: dict[str, tuple[str, int]] = {"accuracy": ("|b1", 1), "perplexity": ("<f4", 2), "bleu": ("<i2", 2 * NGRAMS + 2)}


@dataclass(frozen=True)
class RowScores:
    """The scores of all rows, in the order of the validation set.

    Attributes:
        metric: ``accuracy`` (whether the row is right), ``perplexity`` (sum of its losses in nats, number of its
            tokens) or ``bleu`` (n-grams that match, n-grams, length, length of the reference).
        values: An array of rows x numbers.
    """

    metric: str
    values: Array

    def pack(self) -> dict[str, Any]:
        """Return JSON values."""
        kind, _ = KINDS[self.metric]
        values = np.packbits(self.values) if self.metric == "accuracy" else self.values.astype(kind)
        text = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
        return {"metric": self.metric, "rows": len(self.values), "data": text}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> RowScores:
        """Read what `pack` wrote.

        Raises:
            ReproductionError: If it is something else.
        """
        try:
            kind, width = KINDS[packed["metric"]]
            content = zlib.decompress(base64.b64decode(packed["data"]))
            if packed["metric"] == "accuracy":
                bits = np.unpackbits(np.frombuffer(content, np.uint8), count=packed["rows"])
                return cls("accuracy", bits.reshape(-1, 1))
            return cls(packed["metric"], np.frombuffer(content, kind).reshape(packed["rows"], width))
        except (LookupError, TypeError, ValueError, zlib.error) as error:
            raise ReproductionError(
                f"The journal holds scores of rows that cannot be read ({error}): it is of another version."
            ) from error

    def score(self, weights: Array | None = None) -> Array:
        """Return the metric of all rows, or for each line of weights that of as many copies of each row."""
        weights = np.ones((1, len(self.values))) if weights is None else np.atleast_2d(weights)
        sums = weights @ self.values.astype("float64")
        return _SCORES[self.metric](sums, weights.sum(1))


def _accuracy(sums: Array, rows: Array) -> Array:
    return sums[:, 0] / rows


def _perplexity(sums: Array, rows: Array) -> Array:
    return np.exp(sums[:, 0] / sums[:, 1])


def _bleu(sums: Array, rows: Array) -> Array:
    """Return sacreBLEU's score with its default settings."""
    from sacrebleu import BLEU

    return np.array([BLEU.compute_bleu(*_counts(one), smooth_method="exp").score for one in sums])


def _counts(sums: Array) -> tuple[list[int], list[int], int, int]:
    numbers = [round(value) for value in sums]
    return numbers[:NGRAMS], numbers[NGRAMS : 2 * NGRAMS], numbers[-2], numbers[-1]


_SCORES: dict[str, Callable[[Array, Array], Array]] = {
    "accuracy": _accuracy,
    "perplexity": _perplexity,
    "bleu": _bleu,
}


class KeepsRows:
    """A ``compute_metrics`` that also keeps what each row of its last call scored.

    Attributes:
        last: The scores; None for a task whose rows are not kept.
    """

    def __init__(
        self, compute: Callable[[Any], Any], metric: str, data: TaskData, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._compute, self._metric, self._data, self._tokenizer = compute, metric, data, tokenizer
        self.last: RowScores | None = None

    def __call__(self, evaluated: EvalPrediction) -> Any:
        """Compute the metrics."""
        values = self._rows(evaluated)
        self.last = None if values is None else RowScores(self._metric, values)
        return self._compute(evaluated)

    def _rows(self, evaluated: EvalPrediction) -> Array | None:
        if self._metric == "perplexity":
            return np.asarray(evaluated.predictions)
        if self._metric == "accuracy" and np.ndim(evaluated.label_ids) == 1:
            return (np.argmax(evaluated.predictions, axis=-1) == evaluated.label_ids).reshape(-1, 1)
        if self._metric == "bleu":
            return _ngrams(evaluated, self._data, self._tokenizer)
        return None


def _ngrams(evaluated: EvalPrediction, data: TaskData, tokenizer: PreTrainedTokenizerBase) -> Array:
    from sacrebleu import BLEU

    from hf_layerdrop.tasks.sequence_to_sequence import generated_texts

    bleu, rows = BLEU(effective_order=True), []  # which changes the score of a sentence, not what is counted
    for text, number in zip(generated_texts(evaluated.predictions, tokenizer), evaluated.label_ids, strict=True):
        found = bleu.sentence_score(text, data.examples[number])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows)
