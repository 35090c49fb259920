"""The metrics of texts, answers, tags and language models: by hand, and against the libraries that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
import sklearn.metrics
from rouge_score import rouge_scorer
from transformers import EvalPrediction

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import load_metric_of
from hf_layerdrop.tasks.question_answering import Window, best_answers
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.tasks.task import TaskData

FOUND = ["the cat sat on the mat", "a dog barked at me loudly", ""]
RIGHT = [["the cat sat on a mat", "a cat was on the mat"], ["the dog barked at me"], ["nothing at all"]]


def test_bleu_of_one_sentence_is_its_definition():
    found, right = ["the cat sat on the mat"], [["the cat sat on the rug"]]
    precisions = [5 / 6, 4 / 5, 3 / 4, 2 / 3]  # of 6, 5, 4 and 3 runs of words, each but the last is in the reference
    expected = 100 * math.prod(precisions) ** (1 / 4)
    computed = load_metric_of("text", "bleu").compute(predictions=found, references=right)
    assert computed["bleu"] == pytest.approx(expected)


def test_bleu_and_chrf_are_sacrebleus_with_several_references():
    streams = [[row[0] for row in RIGHT], [row[1] if len(row) > 1 else None for row in RIGHT]]
    metric = load_metric_of("text", "bleu", "chrf")
    computed = metric.compute(predictions=FOUND, references=RIGHT)
    assert computed["bleu"] == pytest.approx(sacrebleu.corpus_bleu(FOUND, streams).score)
    assert computed["chrf"] == pytest.approx(sacrebleu.corpus_chrf(FOUND, streams).score)
    assert metric.signatures["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nc:6|nw:0" in metric.signatures["chrf"]


def test_rouge_of_one_sentence_is_its_definition():
    found, right = ["the cat sat here"], [["the cat lay there"]]
    computed = load_metric_of("text", "rouge1", "rouge2", "rougeL").compute(predictions=found, references=right)
    # 2 of 4 words are common, 1 of 3 pairs, and the longest common subsequence has 2 words.
    assert computed == pytest.approx({"rouge1": 50, "rouge2": 100 / 3, "rougeL": 50})


def test_rouge_is_rouge_scores_mean_over_the_best_references():
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
    computed = load_metric_of("text", *names).compute(predictions=FOUND, references=RIGHT)
    for name in names:
        best = [
            max(scorer.score(right, text)[name].fmeasure for right in row)
            for text, row in zip(FOUND, RIGHT, strict=True)
        ]
        assert computed[name] == pytest.approx(100 * sum(best) / 3)


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("a big cat", ["the cat", "dog"], 0, 2 * 1 / (2 + 1)),
        ("cat cat", ["cat"], 0, 2 * 1 / (2 + 1)),
        ("dog", ["cat"], 0, 0),
        ("", [], 1, 1),  # no answer, rightly
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", [], 1, 1),  # articles are no answer
    ],
)
def test_answers_are_compared_as_in_squad(found, right, exact, f1):
    computed = load_metric_of("answers", "exact_match", "f1").compute(predictions=[found], references=[right])
    assert computed == pytest.approx({"exact_match": 100 * exact, "f1": 100 * f1})


TAG_CASES = [
    # Rows of found and right tags; right entities, found entities, common ones.
    (["B-P", "I-P", "O"], ["B-P", "I-P", "O"], 1, 1, 1),
    (["B-P", "O", "O"], ["B-P", "I-P", "O"], 1, 1, 0),  # the borders have to agree
    (["B-L", "I-L", "O"], ["B-P", "I-P", "O"], 1, 1, 0),  # and the kind
    (["B-P", "B-P", "O"], ["B-P", "I-P", "O"], 1, 2, 0),
    (["I-P", "I-P", "O"], ["B-P", "I-P", "O"], 1, 1, 1),  # an I- after O begins one too
    (["I-P", "I-L", "O"], ["B-P", "B-L", "O"], 2, 2, 2),  # as does a change of kind
    (["O", "O", "O"], ["O", "B-P", "O"], 1, 0, 0),
    (["S-P", "S-P", "B-L"], ["S-P", "S-P", "O"], 2, 3, 2),
]


@pytest.mark.parametrize(("found", "right", "wanted", "given", "common"), TAG_CASES)
def test_entities_are_compared_whole(found, right, wanted, given, common):
    metric = load_metric_of("tags", "f1", "precision", "recall", "accuracy")
    computed = metric.compute(predictions=[found], references=[right])
    assert computed["precision"] == (common / given if given else 0)
    assert computed["recall"] == common / wanted
    assert computed["f1"] == pytest.approx(2 * common / (given + wanted))
    assert computed["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(right, found))


def test_perplexity_weighs_by_tokens():
    computed = load_metric_of("language", "perplexity").compute(predictions=[8.0, 1.0], references=[3.0, 1.0])
    assert computed["perplexity"] == pytest.approx(math.exp(9 / 4))
    assert (
        load_metric_of("language", "perplexity").compute(predictions=[1e9], references=[1.0])["perplexity"] == math.inf
    )


def test_an_unknown_metric_names_those_that_there_are():
    with pytest.raises(TaskError, match="rougeL"):
        load_metric_of("text", "meteor")


CONTEXT = "Ann lives in Rome now"
OFFSETS = [None, (0, 3), (4, 9), (10, 12), (13, 17), (18, 21)]


def scores(**places):
    values = np.full(len(OFFSETS), -5.0)
    for place, value in places.items():
        values[int(place[1:])] = value
    return values


def test_the_best_span_of_all_windows_of_a_question_is_the_answer():
    windows = [Window(0, CONTEXT, OFFSETS, 0, ["Rome"]), Window(0, CONTEXT, OFFSETS, 0, ["Rome"])]
    starts = [scores(_1=3), scores(_4=4)]
    ends = [scores(_1=3), scores(_4=4, _3=9)]  # an end before its start is no span
    assert best_answers(windows, starts, ends) == {0: "Rome"}


def test_no_answer_wins_only_where_some_question_has_none():
    starts, ends = [scores(_0=9, _4=4)] * 2, [scores(_0=9, _4=4)] * 2
    with_answers = [Window(number, CONTEXT, OFFSETS, 0, ["Rome"]) for number in range(2)]
    assert best_answers(with_answers, starts, ends) == {0: "Rome", 1: "Rome"}
    one_without = [with_answers[0], Window(1, CONTEXT, OFFSETS, 0, [])]
    assert best_answers(one_without, starts, ends) == {0: "", 1: ""}
    weaker = [starts[0], scores(_0=3, _4=4)]
    assert best_answers(one_without, weaker, weaker) == {0: "", 1: "Rome"}


def test_half_of_the_windows_is_scored_on_its_own_questions():
    windows = [Window(number, CONTEXT, OFFSETS, 0, [answer]) for number, answer in enumerate(["Rome", "Ann"])]
    data = TaskData(load_task("question-answering"), None, {}, examples=windows)
    compute = load_task("question-answering").metric(data)
    second = (np.array([scores(_1=4)]), np.array([scores(_1=4)]))
    assert compute(EvalPrediction(second, np.array([1]))) == {"f1": 100.0, "exact_match": 100.0}
    assert compute(EvalPrediction(second, np.array([0]))) == {"f1": 0.0, "exact_match": 0.0}
