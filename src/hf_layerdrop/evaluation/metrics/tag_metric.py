"""Metrics of tagged words as one `evaluate.Metric`; its configuration names them, joined by ``+``.

Precision, recall and F1 are of whole entities with their kind, as in CoNLL's evaluation and in seqeval: an entity goes
from its first to its last word, ``B-`` or a change of kind begins a new one, and an ``I-`` after ``O`` begins one too.
The accuracy is of single words. All are from 0 to 1.

`evaluate` loads this file by path, as a copy, so it imports nothing of this package. The imports are parsed line by
line, so there is one a line.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

CITATION = """\
@inproceedings{sang2003conll,
  title = {Introduction to the {CoNLL}-2003 Shared Task},
  author = {Tjong Kim Sang, Erik F. and De Meulder, Fien},
  booktitle = {CoNLL},
  year = {2003}
}"""

Tags = Sequence[Sequence[str]]
OUTSIDE = "O"


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of one row as (kind, first word, last word)."""
    found = []
    before = OUTSIDE
    for place, tag in enumerate(tags):
        if tag != OUTSIDE:
            if begins(before, tag):
                found.append((kind(tag), place, place))
            else:
                found[-1] = (*found[-1][:2], place)
        before = tag
    return set(found)


def begins(before: str, tag: str) -> bool:
    """Tell whether a tag begins an entity: also in the scheme with E- for the last word and S- for a single one."""
    return before == OUTSIDE or tag[:2] in ("B-", "S-") or before[:2] in ("E-", "S-") or kind(before) != kind(tag)


def kind(tag: str) -> str:
    """Return the kind of entity that a tag is of."""
    return tag[2:]


class TagMetric(evaluate.Metric):
    """The metrics that the configuration's name lists, of ``f1``, ``precision``, ``recall`` and ``accuracy``."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description="predictions: the tags of each row. references: the same.",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, *, predictions: Tags, references: Tags) -> dict[str, float]:
        found, wanted, right, words, hits = 0, 0, 0, 0, 0
        for row, correct in zip(predictions, references, strict=True):
            of_row, of_correct = entities(row), entities(correct)
            found, wanted, right = found + len(of_row), wanted + len(of_correct), right + len(of_row & of_correct)
            words += len(correct)
            hits += sum(tag == other for tag, other in zip(row, correct, strict=True))
        values = {
            "precision": right / found if found else 0.0,
            "recall": right / wanted if wanted else 0.0,
            "f1": 2 * right / (found + wanted) if found + wanted else 0.0,
            "accuracy": hits / words if words else 0.0,
        }
        return {name: values[name] for name in self.config_name.split("+")}
