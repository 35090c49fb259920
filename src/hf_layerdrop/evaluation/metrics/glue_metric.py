"""GLUE's metrics as one `evaluate.Metric`; its configuration names the metrics to compute, joined by ``+``.

`evaluate` loads this file by path, as a copy, so it imports nothing of this package. The imports are parsed line by
line, so there is one a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy
import scipy.stats
import sklearn.metrics

CITATION = """\
@inproceedings{wang2019glue,
  title = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle = {ICLR},
  year = {2019}
}"""

Values = Any  # an array of numbers


def accuracy(predictions: Values, references: Values) -> float:
    """Share of predictions that are right."""
    return sklearn.metrics.accuracy_score(references, predictions)


def f1(predictions: Values, references: Values) -> float:
    """F1 of class 1 (a paraphrase, a duplicate); 0 if that class is neither predicted nor present."""
    return sklearn.metrics.f1_score(references, predictions, zero_division=0.0)


def matthews_correlation(predictions: Values, references: Values) -> float:
    """Matthews correlation of two classes; 0 if either side has only one."""
    return sklearn.metrics.matthews_corrcoef(references, predictions)


def pearson(predictions: Values, references: Values) -> float:
    """Pearson correlation; 0 if either side is constant, where it is not defined."""
    return _correlation(scipy.stats.pearsonr, predictions, references)


def spearmanr(predictions: Values, references: Values) -> float:
    """Spearman's rank correlation; 0 if either side is constant, where it is not defined."""
    return _correlation(scipy.stats.spearmanr, predictions, references)


def _correlation(correlate: Callable[..., Any], predictions: Values, references: Values) -> float:
    """Give a constant side the value of a useless prediction: a NaN would win or lose comparisons by chance."""
    if numpy.ptp(predictions) == 0 or numpy.ptp(references) == 0:
        return 0.0
    return correlate(predictions, references)[0]


METRICS = {metric.__name__: metric for metric in (accuracy, f1, matthews_correlation, pearson, spearmanr)}
OF_NUMBERS = {"pearson", "spearmanr"}


class GlueMetric(evaluate.Metric):
    """The metrics of `METRICS` that the configuration's name lists, e.g. ``accuracy+f1``."""

    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if OF_NUMBERS & set(self._names()) else "int64"
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description="predictions: class numbers, or numbers for a regression. references: the same.",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, *, predictions: Values, references: Values) -> dict[str, float]:
        return {
            name: float(METRICS[name](numpy.asarray(predictions), numpy.asarray(references))) for name in self._names()
        }

    def _names(self) -> list[str]:
        return self.config_name.split("+")
