"""Exact match and F1 of answers, by the definitions of SQuAD 1.1 and 2.0, from 0 to 100, as one `evaluate.Metric`.

Answers are compared without case, punctuation, articles and extra blanks. F1 is of their words; of several right
answers the one that fits best counts. A question that has no answer (2.0) has an empty list of references, and is met
by an empty prediction alone.

`evaluate` loads this file by path, as a copy, so it imports nothing of this package. The imports are parsed line by
line, so there is one a line.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import datasets
import evaluate

CITATION = """\
@inproceedings{rajpurkar2016squad,
  title = {{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author = {Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle = {EMNLP},
  year = {2016}
}"""

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)


def normalized(text: str) -> str:
    """Leave out what SQuAD does not compare."""
    letters = "".join(letter for letter in text.lower() if letter not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", letters).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if the answers are the same, else 0."""
    return float(normalized(prediction) == normalized(answer))


def f1(prediction: str, answer: str) -> float:
    """F1 of the words; where one side has none, 1 if both have none."""
    found, wanted = normalized(prediction).split(), normalized(answer).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


METRICS = {metric.__name__: metric for metric in (exact_match, f1)}


class AnswerMetric(evaluate.Metric):
    """The metrics of `METRICS` that the configuration's name lists, e.g. ``exact_match+f1``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description="predictions: answers. references: a list of right answers for each; empty for none.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        # As the official script does: an answer of articles and punctuation alone is none.
        rights = [[answer for answer in row if normalized(answer)] or [""] for row in references]
        rows = list(zip(predictions, rights, strict=True))
        return {
            name: 100 * sum(max(METRICS[name](text, right) for right in row) for text, row in rows) / len(rows)
            for name in self.config_name.split("+")
        }
