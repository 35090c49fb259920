"""Metrics by name, with the published definitions and without network."""

from __future__ import annotations

import difflib
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError, require

if TYPE_CHECKING:
    import evaluate
    from transformers import EvalPrediction

# What is compared -> the file that knows how, and the metrics that it has.
SCRIPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("text_metric.py", ("bleu", "chrf", "rouge1", "rouge2", "rougeL")),
    "answers": ("answer_metric.py", ("exact_match", "f1")),
    "tags": ("tag_metric.py", ("f1", "precision", "recall", "accuracy")),
    "language": ("language_metric.py", ("perplexity",)),
}
SCRIPT = Path(__file__).with_name("glue_metric.py")
# What a file imports, beside `evaluate`.
_LIBRARIES = {"glue_metric.py": ("sklearn", "scipy"), "text_metric.py": ("sacrebleu", "rouge_score")}
OF_CLASSES = ("accuracy", "f1", "matthews_correlation")
OF_NUMBERS = ("pearson", "spearmanr")
# evaluate copies a script, invalidates the interpreter's finders and imports the copy: two threads at once stumble.
_LOADING = threading.RLock()


def load_metric(*names: str, beside: Sequence[str] = ()) -> evaluate.Metric:
    """Load metrics as one `evaluate.Metric`; it keeps its values in memory, so that processes share no files.

    Args:
        *names: The metrics.
        beside: What may be named as well where this is called, for the error.

    Raises:
        TaskError: If a name is unknown; the message names the nearest.
        MissingExtraError: If what computes it is not installed.
    """
    for name in names:
        if name not in OF_CLASSES + OF_NUMBERS:
            known = (*OF_CLASSES, *OF_NUMBERS, *beside)
            begun = [one for one in known if one.startswith(name.lower()) and name]
            near = (begun or difflib.get_close_matches(name.lower(), known, n=1))[:1]
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise TaskError(f"Metric {name!r} is unknown; {meant}Known: {', '.join(known)}.")
    return _load(SCRIPT, names)


def load_metric_of(what: str, *names: str) -> evaluate.Metric:
    """Load metrics of other things than classes and numbers: of what, one of `SCRIPTS`, and which of its metrics.

    Raises:
        TaskError: If a name is unknown.
    """
    script, known = SCRIPTS[what]
    for name in names:
        if name not in known:
            raise TaskError(f"Metric {name!r} of {what} is unknown; choose from {', '.join(known)}.")
    return _load(SCRIPT.with_name(script), names)


def _load(script: Path, names: Sequence[str]) -> evaluate.Metric:
    require("evaluate", *_LIBRARIES.get(script.name, ()))
    import evaluate

    with _LOADING:
        return evaluate.load(str(script), "+".join(names), keep_in_memory=True)


def named_metric(*names: str, beside: Sequence[str] = ()) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return Trainer's ``compute_metrics`` for metrics by name: the likeliest class, or the number itself, is compared.

    See `load_metric` for the arguments.

    Raises:
        TaskError: If a name is unknown, or metrics of classes and of numbers are mixed.
    """
    metric = load_metric(*names, beside=beside)
    regression = names[0] in OF_NUMBERS
    if any((name in OF_NUMBERS) != regression for name in names):
        raise TaskError(f"Metrics {', '.join(names)} cannot be mixed: some compare classes, others numbers.")

    import numpy as np

    functions = sys.modules[type(metric).__module__].METRICS

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        predictions, labels = predicted(evaluated.predictions, regression=regression), evaluated.label_ids
        kinds = "iuf" if regression else "iu"
        if np.shape(labels) != (len(predictions),) or np.asarray(labels).dtype.kind not in kinds:
            return metric.compute(predictions=predictions, references=labels)  # which says what does not fit
        # The metric itself would write all of it into a table and hash that, which takes longer than a short forward.
        sides = [np.asarray(side, "float64" if regression else "int64") for side in (predictions, labels)]
        return {name: float(functions[name](*sides)) for name in names}

    return compute_metrics


def predicted(outputs: Any, *, regression: bool) -> Any:
    """Return the predicted classes, or the numbers of a regression, from what a model gave."""
    # Models such as BART return more than the logits; those come first.
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.reshape(len(logits)) if regression else logits.argmax(axis=-1)
