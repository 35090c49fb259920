"""Metrics of generated text as one `evaluate.Metric`; its configuration names them, joined by ``+``.

BLEU and chrF are sacrebleu's with its default settings, ROUGE is rouge-score's with its stemmer. All are given as
published, from 0 to 100, and the references of a row may be several.

`evaluate` loads this file by path, as a copy, so it imports nothing of this package. The imports are parsed line by
line, so there is one a line.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import sacrebleu
from rouge_score import rouge_scorer

CITATION = """\
@inproceedings{post2018call,
  title = {A Call for Clarity in Reporting {BLEU} Scores},
  author = {Post, Matt},
  booktitle = {WMT},
  year = {2018}
}
@inproceedings{lin2004rouge,
  title = {{ROUGE}: A Package for Automatic Evaluation of Summaries},
  author = {Lin, Chin-Yew},
  booktitle = {Text Summarization Branches Out},
  year = {2004}
}"""

OF_CORPUS = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def rouge(predictions: Texts, references: References, names: Sequence[str]) -> dict[str, float]:
    """Mean F1 over the rows; of several references, the one that fits best counts."""
    scorer = rouge_scorer.RougeScorer(list(names), use_stemmer=True)
    scores = [scorer.score_multi(row, text) for text, row in zip(predictions, references, strict=True)]
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


class TextMetric(evaluate.Metric):
    """The metrics that the configuration's name lists, e.g. ``bleu+chrf`` or ``rouge1+rouge2+rougeL``.

    After `compute`, ``signatures`` holds what sacrebleu says of the settings of its metrics, by name.
    """

    def _info(self) -> evaluate.MetricInfo:
        self.signatures: dict[str, str] = {}
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description="predictions: texts. references: a list of texts for each.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Texts, references: References) -> dict[str, float]:
        names = self.config_name.split("+")
        values = {name: self._of_corpus(name, predictions, references) for name in names if name in OF_CORPUS}
        others = [name for name in names if name not in OF_CORPUS]
        return {**values, **(rouge(predictions, references, others) if others else {})}

    def _of_corpus(self, name: str, predictions: Texts, references: References) -> float:
        metric = OF_CORPUS[name]()
        most = max(len(row) for row in references)
        # sacrebleu wants one list for the first references, one for the second ..., with gaps where a row has fewer.
        streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
        score = metric.corpus_score(list(predictions), streams).score
        self.signatures[name] = str(metric.get_signature())
        return float(score)
