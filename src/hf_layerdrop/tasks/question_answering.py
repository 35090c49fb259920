"""Extractive question answering as in SQuAD 1.1 and 2.0: the answer is a span of a paragraph, or there is none.

A paragraph that is longer than an input becomes several, which overlap; the best span of all of them is the answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import load_metric_of
from hf_layerdrop.tasks.classification import padding_collator
from hf_layerdrop.tasks.columns import texts_in
from hf_layerdrop.tasks.task import ROW_NUMBERS, Encoding, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


OVERLAP = 128  # tokens that neighbouring windows share, at most half a window
BEST = 20  # starts and ends that are combined
LONGEST = 30  # tokens of an answer
_NOTES = ("number", "offsets", "none")  # columns of windows that are no inputs
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Window:
    """Part of a paragraph with its question, as scored.

    Attributes:
        question: Number of the question; all windows of it together give one answer.
        context: The whole paragraph.
        offsets: First and last letter of each token that is part of the paragraph; None for others.
        no_answer: Place of the token that stands for no answer.
        answers: The right answers; empty if there is none.
    """

    question: int
    context: str
    offsets: Sequence[tuple[int, int] | None]
    no_answer: int
    answers: Sequence[str]


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Return ``question``, ``context``, and the ``texts`` and ``starts`` of the right answers; empty for none."""
    from datasets import Dataset, Features, Sequence, Value

    question, context = (texts_in(rows, column, where) for column in task.text_columns)
    answers = [_answers(value, row, task, where) for row, value in enumerate(rows[task.label_column])]
    for row, ((texts, starts), paragraph) in enumerate(zip(answers, context, strict=True)):
        for text, start in zip(texts, starts, strict=True):
            if paragraph[start : start + len(text)] != text or start < 0:
                raise TaskError(
                    f"{where} has the answer {text!r} at letter {start} in row {row}, where the text has "
                    f"{paragraph[max(start, 0) : start + len(text)]!r}; answers must be spans of the text."
                )
    columns = {
        "question": [text.strip() for text in question],
        "context": context,
        "texts": [texts for texts, _ in answers],
        "starts": [starts for _, starts in answers],
    }
    text, number = Value("string"), Value("int64")
    features = {"question": text, "context": text, "texts": Sequence(text), "starts": Sequence(number)}
    return Dataset.from_dict(columns, features=Features(features))


def _answers(value: Any, row: int, task: Task, where: str) -> tuple[list[str], list[int]]:
    """Read answers in any of their forms: a dict of lists, a list of dicts, JSON text of either."""
    try:
        if isinstance(value, str):
            value = json.loads(value)
        if isinstance(value, Mapping):
            texts, starts = list(value["text"]), [int(start) for start in value["answer_start"]]
        else:
            texts, starts = [part["text"] for part in value], [int(part["answer_start"]) for part in value]
        if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
            raise ValueError("text and answer_start differ")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TaskError(
            f"{where} has {str(value)[:500]!r} in row {row} of column {task.label_column!r}; answers are lists 'text' "
            "and 'answer_start', empty where there is no answer."
        ) from error
    kept = [(text, start) for text, start in zip(texts, starts, strict=True) if text]
    return [text for text, _ in kept], [start for _, start in kept]


def encode(rows: Dataset, encoding: Encoding) -> Dataset:
    """Cut paragraphs into windows; scored ones get a number by which `Window` is found."""
    job = partial(_encode, tokenizer=encoding.tokenizer, length=encoding.max_length)
    numbered = rows.add_column("number", list(range(len(rows))))
    windows = numbered.map(job, batched=True, remove_columns=numbered.column_names, desc="Tokenizing")
    if encoding.training:
        return windows.remove_columns(list(_NOTES))
    questions = len({window.question for window in encoding.examples})
    first = len(encoding.examples)
    encoding.examples.extend(_windows(rows, windows, questions))
    kept = windows.remove_columns(list(_NOTES))
    return kept.add_column(ROW_NUMBERS, list(range(first, first + len(windows))))


def _windows(rows: Dataset, windows: Dataset, questions: int) -> Iterator[Window]:
    contexts, answers = list(rows["context"]), list(rows["texts"])
    for number, offsets, none in zip(windows["number"], windows["offsets"], windows["none"], strict=True):
        spans = [(begin, end) if end else None for begin, end in offsets]
        yield Window(questions + number, contexts[number], spans, none, answers[number])


def _encode(rows: Mapping[str, list[Any]], *, tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, list[Any]]:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = length - special
    questions = [_shortened(text, tokenizer, room // 2) for text in rows["question"]]
    encoded = tokenizer(
        questions,
        rows["context"],
        truncation="only_second",
        max_length=length,
        stride=min(OVERLAP, room // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    inputs: dict[str, list[Any]] = {name: encoded[name] for name in INPUTS if name in encoded}
    more: dict[str, list[Any]] = defaultdict(list)
    for window, source in enumerate(encoded["overflow_to_sample_mapping"]):
        of_context = [part == 1 for part in encoded.sequence_ids(window)]
        offsets = encoded["offset_mapping"][window]
        none = _place_of_none(encoded["input_ids"][window], tokenizer)
        begin, end = _span(offsets, of_context, rows["starts"][source], rows["texts"][source], none)
        more["start_positions"].append(begin)
        more["end_positions"].append(end)
        more["number"].append(rows["number"][source])
        pairs = zip(offsets, of_context, strict=True)
        more["offsets"].append([list(pair) if inside else [0, 0] for pair, inside in pairs])
        more["none"].append(none)
    return {**inputs, **more}


def _shortened(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> str:
    """Cut a question that would leave no room for the paragraph."""
    encoded = tokenizer(
        question, add_special_tokens=False, truncation=True, max_length=length, return_offsets_mapping=True
    )
    return question[: encoded["offset_mapping"][-1][1]] if encoded["offset_mapping"] else question


def _place_of_none(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    return tokens.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in tokens else 0


def _span(
    offsets: Sequence[tuple[int, int]],
    of_context: Sequence[bool],
    starts: Sequence[int],
    texts: Sequence[str],
    none: int,
) -> tuple[int, int]:
    """Return first and last token of the first answer; the token for none if this window does not hold all of it."""
    if not texts:
        return none, none
    begin, end = starts[0], starts[0] + len(texts[0])
    tokens = [
        place
        for place, (pair, inside) in enumerate(zip(offsets, of_context, strict=True))
        if inside and pair[1] > begin and pair[0] < end
    ]
    held = tokens and offsets[tokens[0]][0] <= begin and offsets[tokens[-1]][1] >= end
    return (tokens[0], tokens[-1]) if held else (none, none)


def first_two(logits: Any, labels: Any) -> Any:
    """Keep the logits of starts and ends alone: some models return more."""
    return tuple(logits[:2])


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Choose the best span of each question over its windows, and compare it with the right answers."""
    metric = load_metric_of("answers", *data.task.metrics)

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        starts, ends = evaluated.predictions[:2]
        windows = [data.examples[row] for row in evaluated.label_ids]
        found = best_answers(windows, starts, ends)
        answers = {window.question: list(window.answers) for window in windows}
        return metric.compute(predictions=[found[number] for number in answers], references=list(answers.values()))

    return compute


def best_answers(windows: Sequence[Window], starts: Any, ends: Any) -> dict[int, str]:
    """Return one answer a question: the span with the largest sum of start and end.

    If some question has no answer (2.0), the empty one wins where its own sum is larger in all windows: as in the
    official script, the smallest of them counts.
    """
    spans: dict[int, list[tuple[float, str]]] = defaultdict(list)
    none: dict[int, float] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        spans[window.question] += _best_spans(window, start, end)
        score = float(start[window.no_answer] + end[window.no_answer])
        none[window.question] = min(score, none.get(window.question, score))
    may_be_none = any(not window.answers for window in windows)
    best = {question: max(found, default=(-1e9, "")) for question, found in spans.items()}
    return {
        question: "" if may_be_none and none[question] > score else text for question, (score, text) in best.items()
    }


def _best_spans(window: Window, start: Any, end: Any) -> list[tuple[float, str]]:
    begins, lasts = _largest(window, start), _largest(window, end)
    pairs = [
        (float(start[begin] + end[last]), begin, last)
        for begin in begins
        for last in lasts
        if begin <= last < begin + LONGEST
    ]
    if not pairs:
        return []
    score, begin, last = max(pairs)
    first, final = window.offsets[begin], window.offsets[last]
    assert first is not None
    assert final is not None
    return [(score, window.context[first[0] : final[1]])]


def _largest(window: Window, scores: Any) -> list[int]:
    """Return the places with the largest scores, of those that are part of the paragraph."""
    import numpy

    inside = [place for place, pair in enumerate(window.offsets) if pair is not None]
    order = numpy.argsort(-scores[inside], kind="stable")[:BEST]
    return [inside[place] for place in order]


QUESTION_ANSWERING = Kind(
    "extractive question answering",
    "QuestionAnswering",
    check,
    encode,
    padding_collator,
    compute_metrics,
    reduce=first_two,
    numbers_rows=True,
    max_length=384,
    needs_words=True,
)
