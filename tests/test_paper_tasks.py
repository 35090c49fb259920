"""Every task of the paper, from files to the table of depths, by the command; each learns something that can be seen."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
import transformers
from datasets import disable_progress_bars

from hf_layerdrop.cli import run
from hf_layerdrop.headers import read_config
from hf_layerdrop.report.table import read_results
from hf_layerdrop.tasks import load_task

disable_progress_bars()

COLORS = {"rot": "red", "blau": "blue", "gelb": "yellow", "schwarz": "black"}
FILLERS = ("and", "so", "it", "was", "then", "some", "time", "ago")
TOWNS = ("Rome", "Oslo", "Lima")


def sentences(draw, count=160):
    return [{"text": f"{' '.join(draw.choice((('a', 'b', 'c', 'd'), ('w', 'x', 'y', 'z'))))} ."} for _ in range(count)]


def translations(draw, count=64):
    words = [draw.choice(list(COLORS)) for _ in range(count)]
    return [{"de": f"der Ball ist {word}", "en": f"the ball is {COLORS[word]} now"} for word in words]


def summaries(draw, count=64):
    rows = translations(draw, count)
    return [{"dialogue": f"Ann: {row['de']}. Bo: ja.", "summary": row["en"]} for row in rows]


def long_answers(draw, count=64):
    rows = translations(draw, count)
    return [{"question": row["de"], "document": "er war so", "answer": row["en"]} for row in rows]


def questions(draw, count=64, unanswerable=0.0):
    rows = []
    for _ in range(count):
        words = [draw.choice(FILLERS) for _ in range(12)]
        place = draw.randrange(12)
        town = draw.choice(TOWNS)
        missing = draw.random() < unanswerable
        words[place] = "nowhere" if missing else town
        context = " ".join(words)
        answers = {"text": [] if missing else [town], "answer_start": [] if missing else [context.index(town)]}
        rows.append({"question": "where ?", "context": context, "answers": answers})
    return rows


def tagged(draw, count=64):
    tags = {**dict.fromkeys(FILLERS, "O"), **dict.fromkeys(TOWNS, "B-LOC"), "City": "I-LOC"}
    rows = []
    for _ in range(count):
        words = [draw.choice(FILLERS), draw.choice(TOWNS), "City", *draw.sample(FILLERS, 3), draw.choice(TOWNS)]
        rows.append({"tokens": words, "ner_tags": [tags[word] for word in words]})
    return rows


def choices(draw, count=64):
    rows = []
    for _ in range(count):
        right = draw.randrange(2)
        ends = [f"a {draw.choice(FILLERS)} {'good' if place == right else 'bad'} end" for place in range(2)]
        rows.append({"premise": draw.choice(FILLERS), "choice1": ends[0], "choice2": ends[1], "label": right})
    return rows


# Name -> rows, a score that only a model that learned them has, further arguments.
LEARNED = {
    "clm": (sentences, lambda m: m["perplexity"] < 3, ["--max-length", "32"]),
    "mlm": (sentences, lambda m: m["perplexity"] < 6, ["--max-length", "32"]),
    "translation": (translations, lambda m: m["bleu"] > 80 and m["chrf"] > 80, ["--text-columns", "de,en"]),
    "summarization": (summaries, lambda m: min(m["rouge1"], m["rouge2"], m["rougeL"]) > 80, []),
    "long-form-qa": (long_answers, lambda m: m["rougeL"] > 80, []),
    "question-answering": (questions, lambda m: m["f1"] > 80 and m["exact_match"] > 80, ["--max-length", "32"]),
    "token-classification": (tagged, lambda m: m["f1"] > 0.9 and m["accuracy"] > 0.9, []),
    "multiple-choice": (choices, lambda m: m["accuracy"] > 0.9, []),
}
GENERATED = ("translation", "summarization", "long-form-qa")
PLAIN = {
    "CausalLM": "AutoModelForCausalLM",
    "MaskedLM": "AutoModelForMaskedLM",
    "Seq2SeqLM": "AutoModelForSeq2SeqLM",
    "QuestionAnswering": "AutoModelForQuestionAnswering",
    "TokenClassification": "AutoModelForTokenClassification",
    "MultipleChoice": "AutoModelForMultipleChoice",
}
TRAINER = [
    "--use_cpu",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
]
QUICK = ["--learning_rate", "5e-3", "--per_device_train_batch_size", "16", "--seed", "1"]


def write(path: Path, rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def data_for(name: str, folder: Path) -> list[str]:
    rows, _, more = LEARNED[name]
    train = write(folder / "train.jsonl", rows(random.Random(0)))
    validation = write(folder / "validation.jsonl", rows(random.Random(1))[:24])
    generated = ["--max-target-length", "12"] if name in GENERATED else []
    return ["--task", name, "--train-file", train, "--validation-file", validation, *more, *generated]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train each task once for all tests: folder of the run, by the name of the task."""
    done: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            steps = "120" if name in GENERATED else "80"
            command = [
                "train",
                *data_for(name, folder),
                "--config",
                "tiny-4x32",
                "--vocab-size",
                "400",
                *TRAINER,
                *QUICK,
            ]
            rate = ["--layerdrop", "0.1", "--eval-depths", "4,2,1", "--max_steps", steps]
            assert run([*command, *rate, "--output_dir", str(folder / "run")]) == 0
            done[name] = folder / "run"
        return done[name]

    return train


@pytest.mark.parametrize("name", LEARNED)
def test_a_model_from_a_config_learns_the_task_and_is_cut(trained, name):
    folder = trained(name)
    results = read_results(folder / "depth_results.json")
    stacks = 2 if name in GENERATED else 1
    assert [result.depth for result in results] == [4 * stacks, 2 * stacks, stacks]
    assert LEARNED[name][1](results[0].metrics), results[0].metrics
    assert len({result.metrics["loss"] for result in results}) == 3
    assert set(load_task(name).metrics) <= set(results[0].metrics)
    plain = getattr(transformers, PLAIN[load_task(name).head]).from_pretrained(folder)
    assert read_config(folder)["architectures"] == [type(plain).__name__]
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == plain.config.vocab_size
