import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.data import READERS, load_task_data
from hf_layerdrop.tasks.embedded import SST2_FOLDER, embedded_sst2
from hf_layerdrop.tasks.registry import TASKS, custom_task, load_task
from hf_layerdrop.tasks.task import tokenize
from rows import write_table

ROWS = {
    "cola": [("The book was read.", 1), ("Book the read was.", 0)],
    "sst2": [("a joy", 1), ("a bore", 0)],
    "mrpc": [("He ran.", "He did run.", 1), ("He ran.", "It rains.", 0)],
    "stsb": [("A cat.", "One cat.", 4.75), ("A cat.", "A car.", 0.0)],
    "qqp": [("Why?", "What for?", 1), ("Why?", "When?", 0)],
    "mnli": [("He ran.", "He moved.", 0), ("He ran.", "He won.", 1), ("He ran.", "He sat.", 2)],
    "qnli": [("Who?", "Ann did.", 0), ("Who?", "It rains.", 1)],
    "rte": [("He ran.", "He moved.", 0), ("He ran.", "He sat.", 1)],
    "wnli": [("It fell.", "The cup fell.", 1), ("It fell.", "The table fell.", 0)],
}


def glue_rows(name: str) -> list[dict]:
    columns = (*TASKS[name].text_columns, "label")
    return [dict(zip(columns, row, strict=True)) for row in ROWS[name]]


def load_rows(tmp_path: Path, task, rows: list[dict], ending: str = ".jsonl", **columns):
    file = write_table(tmp_path / f"rows{ending}", rows)
    return load_task_data(task, train_file=file, validation_file=file, **columns)


def test_there_are_the_nine_tasks_of_glue():
    assert set(TASKS) == set(ROWS)


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_its_columns_and_labels_from_every_kind_of_file(tmp_path, name, ending):
    data = load_rows(tmp_path, TASKS[name], glue_rows(name), ending)
    rows = [tuple(row.values()) for row in data.train]
    assert rows == ROWS[name]
    assert data.train.column_names == [*TASKS[name].text_columns, "labels"]
    assert data.task.num_labels == (1 if name == "stsb" else len(ROWS[name]))


@pytest.mark.parametrize("text", ["None", "NA", "null", 'a "lone quote', "3.5", "nan"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_text_that_looks_like_something_else_stays_as_it_is(tmp_path, text, ending):
    rows = [{"sentence": text, "label": 1}, {"sentence": "plain", "label": 0}]
    assert list(load_rows(tmp_path, TASKS["sst2"], rows, ending).train["sentence"]) == [text, "plain"]


def test_labels_are_accepted_by_name_and_by_number(tmp_path):
    rows = [{"sentence": "a", "label": "positive"}, {"sentence": "b", "label": "0"}]
    assert list(load_rows(tmp_path, TASKS["sst2"], rows).train["labels"]) == [1, 0]


def test_columns_may_be_called_otherwise_than_in_glue(tmp_path):
    rows = [{"review": "a", "stars": 1, "id": 7}, {"review": "b", "stars": 0, "id": 8}]
    data = load_rows(tmp_path, TASKS["sst2"], rows, text_columns=["review"], label_column="stars")
    assert data.train[0] == {"review": "a", "labels": 1}


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["neg", "pos", "mixed"], ("mixed", "neg", "pos"), [1, 2, 0]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([1.0, 2.0, 5.0], ("1", "2", "5"), [0, 1, 2]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_own_data_gets_its_classes_from_the_training_labels(tmp_path, labels, names, numbers):
    rows = [{"body": "x", "kind": label} for label in labels]
    data = load_rows(tmp_path, custom_task(["body"], label_column="kind"), rows)
    assert data.task.label_names == names
    assert list(data.train["labels"]) == numbers


def test_own_classes_can_be_given_in_an_order(tmp_path):
    task = custom_task(["body"], label_column="kind", label_names=["pos", "neg"])
    file = write_table(tmp_path / "rows.csv", [{"body": "x", "kind": "neg"}, {"body": "y", "kind": "pos"}])
    data = load_task_data(task, validation_file=file, train=False)
    assert data.train is None
    assert list(data.validation["validation"]["labels"]) == [1, 0]


def test_mnli_has_two_validation_sets(tmp_path):
    train = write_table(tmp_path / "train.csv", glue_rows("mnli"))
    second = write_table(tmp_path / "mm.csv", glue_rows("mnli")[:2])
    data = load_task_data(TASKS["mnli"], train_file=train, validation_file=[train, second])
    assert {name: len(rows) for name, rows in data.validation.items()} == {
        "validation_matched": 3,
        "validation_mismatched": 2,
    }


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("sst2", {"text": "a", "label": 1}, ["no column 'sentence'", "'text', 'label'", "--text-columns"]),
        ("sst2", {"sentence": "a", "class": 1}, ["no column 'label'", "'class'"]),
        ("sst2", {"sentence": "a", "label": 2}, ["label 2", "row 1", "0 (negative), 1 (positive)"]),
        ("sst2", {"sentence": "a", "label": -1}, ["hidden", "test sets"]),
        ("sst2", {"sentence": "a", "label": "good"}, ["'good'", "positive"]),
        ("sst2", {"sentence": "a", "label": None}, ["None", "row 1"]),
        ("sst2", {"sentence": None, "label": 1}, ["None", "'sentence'", "row 1"]),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": 5.5}, ["5.5", "from 0 to 5"]),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": None}, ["None"]),
    ],
)
def test_data_that_does_not_fit_is_refused_with_what_was_found(tmp_path, name, row, said):
    rows = [{**row, **glue_rows(name)[0]}, row] if set(row) == set(glue_rows(name)[0]) else [row, row]
    with pytest.raises(TaskError) as caught:
        load_rows(tmp_path, TASKS[name], rows, ".json")
    assert all(words in str(caught.value) for words in said), caught.value
    assert str(caught.value).count("\n") == 0


def test_own_data_without_text_columns_names_those_there_are(tmp_path):
    with pytest.raises(TaskError, match=r"--text-columns.*'body', 'label'"):
        load_rows(tmp_path, custom_task([]), [{"body": "x", "label": 1}, {"body": "y", "label": 0}])


@pytest.mark.parametrize("labels", [[1, 1], ["a", None], [0.5, 1.0], [[1], [2]]])
def test_own_labels_that_are_no_classes_are_refused(tmp_path, labels):
    with pytest.raises(TaskError, match="classes"):
        load_rows(tmp_path, custom_task(["body"]), [{"body": "x", "label": label} for label in labels])


def test_a_validation_label_that_training_never_saw_is_refused(tmp_path):
    train = write_table(tmp_path / "train.csv", [{"body": "x", "label": name} for name in "ab"])
    validation = write_table(tmp_path / "validation.csv", [{"body": "x", "label": "c"}])
    with pytest.raises(TaskError, match=r"validation\.csv.*'c'.*a.*b"):
        load_task_data(custom_task(["body"]), train_file=train, validation_file=validation)


def test_files_that_cannot_be_data_are_refused(tmp_path):
    good = write_table(tmp_path / "good.csv", glue_rows("sst2"))
    empty = tmp_path / "empty.csv"
    empty.write_text("sentence,label\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 but no more")
    other = tmp_path / "rows.xlsx"
    other.touch()
    for file, said in [
        (empty, "no rows"),
        (broken, "cannot be read as parquet"),
        (other, "unknown kind"),
        (tmp_path / "none.csv", "no data file"),
    ]:
        with pytest.raises(TaskError, match=said):
            load_task_data(TASKS["sst2"], train_file=good, validation_file=file)


def test_files_must_fit_the_splits(tmp_path):
    file = write_table(tmp_path / "rows.csv", glue_rows("sst2"))
    with pytest.raises(TaskError, match="--train-file was given without --validation-file"):
        load_task_data(TASKS["sst2"], train_file=file)
    with pytest.raises(TaskError, match="--validation-file was given without --train-file"):
        load_task_data(TASKS["sst2"], validation_file=file)
    with pytest.raises(TaskError, match="2 validation files"):
        load_task_data(TASKS["sst2"], train_file=file, validation_file=[file, file])
    with pytest.raises(TaskError, match="No task and no data"):
        load_task_data(custom_task(["body"]))


def test_an_unknown_task_names_the_nearest_one():
    with pytest.raises(TaskError, match="nearest: mrpc"):
        load_task("mprc")
    assert load_task("SST-2").name == "sst2"


def test_without_a_network_the_error_says_to_give_files():
    code = (
        "from hf_layerdrop.tasks.data import load_task_data; from hf_layerdrop.tasks.registry import TASKS; "
        "load_task_data(TASKS['rte'])"
    )
    # An address where nothing listens, and an empty cache.
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_CACHE": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "TaskError: Task 'rte' could not be loaded" in last
    assert "--train-file and --validation-file" in last


@pytest.mark.parametrize("ending", READERS)
def test_local_files_are_read_without_a_word_to_the_network(tmp_path, ending, monkeypatch):
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address))
    load_rows(tmp_path, TASKS["sst2"], glue_rows("sst2"), ending)
    assert not asked


def test_importing_tasks_costs_nothing():
    code = "import sys, hf_layerdrop.tasks; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_embedded_sample_is_what_its_readme_says():
    data = embedded_sst2()
    assert len(data["validation"]) == 872
    assert sum(data["validation"]["label"]) == 444
    assert len(data["train"]) == 40_000
    assert sum(data["train"]["label"]) == 22_273
    assert data["train"].features["label"].names == list(TASKS["sst2"].label_names)
    assert not set(data["train"]["sentence"]) & set(data["validation"]["sentence"])
    assert sum(file.stat().st_size for file in SST2_FOLDER.iterdir()) < 600_000
    # In the order of a random draw: the first rows have the mix of the whole.
    assert sum(data["train"]["label"][:4000]) / 4000 == pytest.approx(22_273 / 40_000, abs=0.03)


def test_tokenizing_cuts_pads_by_batch_and_keeps_the_labels(tmp_path, word_tokenizer):
    from hf_layerdrop.tasks.classification import padding_collator

    rows = [
        {"sentence1": "one two three four", "sentence2": "five", "label": 1},
        {"sentence1": "one", "sentence2": "two", "label": 0},
    ]
    data = tokenize(load_rows(tmp_path, TASKS["mrpc"], rows), word_tokenizer, max_length=6)
    assert [len(row) for row in data.train["input_ids"]] == [6, 5]
    assert list(data.train["labels"]) == [1, 0]
    assert not {"sentence1", "sentence2"} & set(data.train.column_names)
    batch = padding_collator(word_tokenizer)([data.train[1], data.train[1]])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["labels"].tolist() == [0, 0]


def test_a_length_without_room_for_words_is_refused(tmp_path, word_tokenizer):
    data = load_rows(tmp_path, TASKS["mrpc"], glue_rows("mrpc"))
    with pytest.raises(TaskError, match="max_length is 3"):
        tokenize(data, word_tokenizer, max_length=3)


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory):
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "five"]
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    return BertTokenizerFast(vocab=str(vocabulary))
