"""Every task of the paper, from files to the table of depths, by the command, and what each of them learns."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from datasets import disable_progress_bars
from safetensors.torch import load_file

from hf_layerdrop.checkpoints.headers import read_config
from hf_layerdrop.cli import run
from hf_layerdrop.results.table import read_results
from hf_layerdrop.tasks.registry import load_task
from rows import write_table

disable_progress_bars()

COLORS = {"rot": "red", "blau": "blue", "gelb": "yellow", "schwarz": "black"}
FILLERS = ("and", "so", "it", "was", "then", "some", "time", "ago")
TOWNS = ("Rome", "Oslo", "Lima")


def sentences(draw, count=160):
    return [{"text": f"{' '.join(draw.choice((('a', 'b', 'c', 'd'), ('w', 'x', 'y', 'z'))))} ."} for _ in range(count)]


def translations(draw, count=64):
    words = [draw.choice(list(COLORS)) for _ in range(count)]
    return [
        {"de": " ".join([word] * 4), "en": f"{COLORS[word]} {COLORS[word]} ball is {COLORS[word]}"} for word in words
    ]


def summaries(draw, count=64):
    rows = translations(draw, count)
    return [{"dialogue": row["de"], "summary": row["en"]} for row in rows]


def long_answers(draw, count=64):
    rows = translations(draw, count)
    return [{"question": row["de"], "document": row["de"], "answer": row["en"]} for row in rows]


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


@pytest.mark.parametrize("name", LEARNED)
def test_sweep_measures_what_train_measured(trained, name, tmp_path):
    folder = trained(name)
    validation = ["--validation-file", str(folder.parent / "validation.jsonl"), *LEARNED[name][2]]
    generated = ["--max-target-length", "12"] if name in GENERATED else []
    command = ["sweep", str(folder), "--task", name, *validation, *generated, "--depths", "4,1"]
    assert run([*command, "--output", str(tmp_path / "swept")]) == 0
    before = {result.depth: result.metrics for result in read_results(folder / "depth_results.json")}
    for result in read_results(tmp_path / "swept" / "depth_results.json"):
        assert result.metrics == pytest.approx(before[result.depth], rel=1e-4)


@pytest.mark.parametrize(("name", "metric"), [("clm", "perplexity"), ("translation", "bleu")])
def test_search_chooses_layers_by_the_metric_of_the_task(trained, name, metric, tmp_path):
    folder = trained(name)
    validation = ["--validation-file", str(folder.parent / "validation.jsonl"), *LEARNED[name][2], "--batch-size", "4"]
    depth = "2" if name == "clm" else "encoder=4;decoder=2"
    generated = ["--max-target-length", "12"] if name in GENERATED else []
    output = tmp_path / "selection.json"
    command = [
        "search",
        str(folder),
        "--task",
        name,
        *validation,
        *generated,
        "--depth",
        depth,
        "--output",
        str(output),
    ]
    assert run([*command, "--strategy", "greedy_removal"]) == 0
    selection = json.loads(output.read_text())
    assert selection["metric"] == metric
    assert math.isfinite(selection["score"])
    assert run(["prune", str(folder), "--keep-layers", str(output), "--output", str(tmp_path / "cut")]) == 0


def test_the_perplexity_is_that_of_plain_transformers(trained):
    folder = trained("clm")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line)["text"] for line in (folder.parent / "validation.jsonl").read_text().splitlines()]
    stream = [token for text in rows for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    total = tokens = 0.0
    for begin in range(0, len(stream), 32):
        block = torch.tensor([stream[begin : begin + 32]])
        with torch.no_grad():
            total += float(model(input_ids=block, labels=block).loss) * (block.shape[1] - 1)
        tokens += block.shape[1] - 1
    found = read_results(folder / "depth_results.json")[0].metrics["perplexity"]
    assert found == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_bleu_is_sacrebleus_of_what_plain_transformers_generates(trained):
    import sacrebleu

    folder = trained("translation")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (folder.parent / "validation.jsonl").read_text().splitlines()]
    inputs = tokenizer([row["de"] for row in rows], padding=True, return_tensors="pt")
    tokens = model.generate(**inputs, max_length=12, num_beams=1, do_sample=False)
    texts = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    expected = sacrebleu.corpus_bleu(texts, [[row["en"] for row in rows]]).score
    assert read_results(folder / "depth_results.json")[0].metrics["bleu"] == pytest.approx(expected)


def test_bleu_is_printed_with_its_signature(trained, capsys, tmp_path):
    folder = trained("translation")
    command = ["sweep", str(folder), *data_for("translation", tmp_path)[:2], "--text-columns", "de,en", "--depths", "1"]
    validation = ["--validation-file", str(folder.parent / "validation.jsonl"), "--max-target-length", "12"]
    assert run([*command, *validation, "--output", str(tmp_path / "swept")]) == 0
    assert "bleu: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlm", "translation"])
def test_a_resumed_run_ends_like_the_one_that_went_through(name, tmp_path, capsys):
    data = data_for(name, tmp_path)
    command = ["train", *data, "--config", "tiny-4x16", "--vocab-size", "400", *TRAINER, *QUICK, "--layerdrop", "0.5"]
    more = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3", "--eval-depths", "1"]
    assert run([*command, *more, "--output_dir", str(tmp_path / "whole")]) == 0
    whole = capsys.readouterr().out
    start = str(tmp_path / "whole" / "checkpoint-3")
    assert run([*command, *more, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", start]) == 0
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "again")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    cost = next(line for line in whole.splitlines() if "layer forwards" in line)
    assert cost in capsys.readouterr().out
    assert "6 steps" in cost


@pytest.mark.parametrize(("rates", "forwards"), [("0", 5 * 4), ("0,1,1,0", 5 * 2)])
def test_the_layers_that_ran_are_counted(rates, forwards, tmp_path, capsys):
    data = data_for("multiple-choice", tmp_path)
    command = ["train", *data, "--config", "tiny-4x16", *TRAINER, "--layerdrop", rates, "--max_steps", "5"]
    assert run([*command, "--eval-depths", "1", "--output_dir", str(tmp_path / "run")]) == 0
    assert f"{forwards} layer forwards in 5 steps of training." in capsys.readouterr().out


def test_pretraining_then_pruning_then_finetuning_without_layerdrop(trained, tmp_path):
    assert run(["prune", str(trained("mlm")), "--keep-layers", "every_other", "--output", str(tmp_path / "small")]) == 0
    rows = [{"text": f"{word} {word} .", "label": int(word in "abcd")} for word in "abcdwxyz" * 4]
    file = write(tmp_path / "rows.jsonl", rows)
    data = ["--train-file", file, "--validation-file", file, "--text-columns", "text"]
    model = ["--model", str(tmp_path / "small"), "--max_steps", "30"]
    assert run(["train", *data, *model, *TRAINER, *QUICK, "--output_dir", str(tmp_path / "run")]) == 0
    results = read_results(tmp_path / "run" / "depth_results.json")
    assert [result.depth for result in results] == [2, 1]
    assert results[0].metrics["accuracy"] > 0.9
    assert not any(read_config(tmp_path / "run")["hf_layerdrop"]["rates"]["encoder"])


# What is wrong is said before training starts, in one sentence.


def wrong(name, folder, capsys, *more, start=("--config", "tiny-4x16"), **files):
    """Run train on data of which some files are replaced; return what it said."""
    data = data_for(name, folder)
    for option, rows in files.items():
        flag = f"--{option}-file"
        data[data.index(flag) + 1] = write(folder / f"wrong-{option}.jsonl", rows)
    output = folder / "run"
    code = run(["train", *data, *start, *TRAINER, "--max_steps", "1", "--output_dir", str(output), *more])
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("Error:")]
    assert code == 2, said
    assert len(errors) == 1
    assert not output.exists()
    return errors[0]


BAD_ROWS = {
    "columns": ("clm", {"train": [{"body": "a", "id": 1}]}, ["no column 'text'", "'body', 'id'"]),
    "empty text": ("mlm", {"validation": [{"text": "  "}]}, ["no text"]),
    "translation columns": (
        "summarization",
        {"train": [{"de": "a", "en": "b"}]},
        ["no column 'document'", "'de', 'en'"],
    ),
    "answer elsewhere": (
        "question-answering",
        {"train": [{"question": "a", "context": "b c", "answers": {"text": ["c"], "answer_start": [0]}}]},
        ["'c' at letter 0 in row 0", "'b'"],
    ),
    "answers of no form": (
        "question-answering",
        {"validation": [{"question": "a", "context": "b", "answers": "c"}]},
        ["'answer_start'"],
    ),
    "unknown tag": (
        "token-classification",
        {"validation": [{"tokens": ["a"], "ner_tags": ["B-XYZ"]}]},
        ["'B-XYZ'", "B-LOC"],
    ),
    "words and tags": (
        "token-classification",
        {"train": [{"tokens": ["a"], "ner_tags": ["O", "B-LOC"]}]},
        ["1 words and 2 tags in row 0"],
    ),
    "label outside": (
        "multiple-choice",
        {"train": [{"premise": "a", "choice1": "b", "choice2": "c", "label": 2}]},
        ["label 2 in row 0", "0 to 1"],
    ),
    "too little text": ("clm", {"train": [{"text": "a b"}]}, ["fewer than one input of 32"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_data_that_does_not_fit_is_refused(case, tmp_path, capsys):
    name, files, words = BAD_ROWS[case]
    said = wrong(name, tmp_path, capsys, **files)
    assert all(word in said for word in words), said


def test_an_empty_split_is_refused(tmp_path, capsys):
    empty = tmp_path / "empty.csv"
    empty.write_text("text\n")
    command = ["train", "--task", "clm", "--config", "tiny-4x16", "--output_dir", str(tmp_path / "run")]
    code = run([*command, "--validation-file", str(empty), "--train-file", str(empty)])
    assert code == 2
    assert "no rows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["translation", "token-classification", "multiple-choice"])
def test_long_inputs_are_counted_and_refused_if_asked(name, tmp_path, capsys):
    said = wrong(name, tmp_path, capsys, "--max-length", "5", "--strict")
    assert "64 of 64 rows of the train data are longer than 5 tokens" in said
    command = ["train", *data_for(name, tmp_path), "--config", "tiny-4x16", "--max-length", "5", "--eval-depths", "1"]
    assert run([*command, *TRAINER, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 0
    assert "64 rows of train are longer than 5 tokens, and were cut." in capsys.readouterr().out


def test_models_that_do_not_fit_the_task_are_refused(trained, tmp_path, capsys):
    causal, masked = trained("clm"), trained("mlm")
    assert "AutoModelForMaskedLM" in wrong("mlm", tmp_path, capsys, start=("--model", str(causal)))
    assert "looks at later tokens" in wrong("clm", tmp_path, capsys, start=("--model", str(masked)))
    more = ("--tokenizer", str(causal))
    assert "no mask token" in wrong("mlm", tmp_path, capsys, *more)
    validation = ["--task", "question-answering", "--validation-file", str(masked.parent / "validation.jsonl")]
    write(masked.parent / "questions.jsonl", questions(random.Random(0), 4))
    validation[-1] = str(masked.parent / "questions.jsonl")
    assert run(["sweep", str(masked), *validation, "--output", str(tmp_path / "swept")]) == 2
    assert "is a BertForMaskedLM" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(trained("clm"), other)
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens([f"<{number}>" for number in range(9)])
    tokenizer.save_pretrained(other)
    said = wrong("clm", tmp_path, capsys, start=("--model", str(other)))
    assert "embeddings for" in said
    assert str(len(tokenizer)) in said


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ((), "Missing option '--model'"),
        (("--model", "x", "--config", "tiny-4x16"), "two models"),
        (("--config", "tiny-4x15"), "odd width"),
        (("--config", "giant-4x16"), "'giant-4x16' is no model"),
        (("--config", "tiny-4+2x16"), "one stack"),
        (("--config", "tiny-4x16", "--vocab-size", "9"), "--vocab-size is 9"),
        (("--config", "tiny-4x16", "--config", "tiny-4x32"), "one model at most"),
        (("--config", "tiny-4x16", "--eval-depths", "5"), "from 1 to 4"),
        (("--config", "tiny-4x16", "--layerdrop", "0.1,0.2"), "4 layers"),
        (("--config", "tiny-4x16", "--dataset-config", "raw"), "--dataset too"),
    ],
)
def test_wrong_models_and_options_are_refused(start, words, tmp_path, capsys):
    assert words in wrong("mlm", tmp_path, capsys, start=start)


def test_a_task_without_data_says_so(capsys, tmp_path):
    assert run(["train", "--task", "translation", "--config", "tiny-4x16", "--output_dir", str(tmp_path / "run")]) == 2
    assert "--dataset of the Hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "model"), [("clm", "llama-4x16"), ("mlm", "roberta-4x16"), ("translation", "bart-4+2x16")]
)
def test_other_families_and_a_config_file_give_the_model_that_they_say(name, model, tmp_path):
    command = ["train", *data_for(name, tmp_path), *TRAINER, "--max_steps", "1", "--eval-depths", "1"]
    assert run([*command, "--config", model, "--output_dir", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run")
    assert config["model_type"] == model.partition("-")[0]
    depths = {
        field: config[field] for field in ("num_hidden_layers", "encoder_layers", "decoder_layers") if field in config
    }
    assert 4 in depths.values()
    assert depths.get("decoder_layers", 2) == 2
    assert 16 in (config.get("hidden_size"), config.get("d_model"))
    options = tmp_path / "options.yaml"
    options.write_text(f"config: {tmp_path / 'run' / 'config.json'}\nmax_steps: 1")
    assert run([*command, "--config", str(options), "--output_dir", str(tmp_path / "again")]) == 0
    again = read_config(tmp_path / "again")
    assert {field: again[field] for field in depths} == depths


# Where the rows come from.


def one_step(tmp_path, *more):
    quick = ["--config", "tiny-4x16", "--vocab-size", "400", *TRAINER, "--max_steps", "1", "--eval-depths", "1"]
    return run(["train", *more, *quick, "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize("ending", [".txt", ".csv", ".parquet"])
def test_language_models_read_lines_and_tables(ending, tmp_path):
    rows = sentences(random.Random(0), 40)
    file = tmp_path / f"rows{ending}"
    if ending == ".txt":
        file.write_text("\n".join(row["text"] for row in rows))
    else:
        write_table(file, rows)
    files = ["--train-file", str(file), "--validation-file", str(file), "--max-length", "16"]
    assert one_step(tmp_path, "--task", "clm", *files) == 0
    assert read_results(tmp_path / "run" / "depth_results.json")[0].metrics["perplexity"] > 1


def test_lines_of_text_are_no_table_for_other_tasks(tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("a\n")
    assert one_step(tmp_path, "--task", "translation", *["--train-file", str(tmp_path / "rows.txt")] * 2) == 2
    files = ["--train-file", str(tmp_path / "rows.txt"), "--validation-file", str(tmp_path / "rows.txt")]
    assert one_step(tmp_path, "--task", "translation", *files) == 2
    assert "unknown kind" in capsys.readouterr().err


def test_a_folder_of_a_data_set_is_read_as_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    pairs = [{"translation": {"de": row["de"], "en": row["en"]}} for row in translations(random.Random(0), 20)]
    for split in ("train", "validation"):
        write(folder / f"{split}.jsonl", pairs)
    arguments = [
        "--task",
        "translation",
        "--dataset",
        str(folder),
        "--text-columns",
        "de,en",
        "--max-target-length",
        "8",
    ]
    assert one_step(tmp_path, *arguments) == 0
    assert {"bleu", "chrf"} <= set(read_results(tmp_path / "run" / "depth_results.json")[0].metrics)


def test_parts_of_speech_are_scored_by_their_accuracy(tmp_path):
    rows = [{"words": "the cat sat", "pos": "DET NOUN VERB"}, {"words": "a dog ran off", "pos": "DET NOUN VERB ADV"}]
    file = str(write_table(tmp_path / "rows.csv", rows * 4))
    columns = ["--text-columns", "words", "--label-column", "pos"]
    files = ["--train-file", file, "--validation-file", file]
    assert one_step(tmp_path, "--task", "token-classification", *files, *columns) == 0
    assert set(read_results(tmp_path / "run" / "depth_results.json")[0].metrics) == {"accuracy", "loss"}
    assert read_config(tmp_path / "run")["id2label"] == {"0": "ADV", "1": "DET", "2": "NOUN", "3": "VERB"}


def test_every_answer_is_in_a_window_and_windows_overlap(trained):
    from hf_layerdrop.tasks.data import load_task_data

    folder = trained("question-answering")
    file = folder.parent / "validation.jsonl"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    task = load_task("question-answering")
    data = task.encode(load_task_data(task, train_file=file, validation_file=file), tokenizer, max_length=14)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    windows = data.validation["validation"]
    assert len(windows) > len(rows)
    found: dict[int, set[str]] = {}
    for number, window in zip(windows["row_numbers"], windows, strict=True):
        begin, end = window["start_positions"], window["end_positions"]
        if begin:
            spans = data.examples[number].offsets
            text = data.examples[number].context[spans[begin][0] : spans[end][1]]
            found.setdefault(data.examples[number].question, set()).add(text)
    assert found == {number: set(row["answers"]["text"]) for number, row in enumerate(rows)}
