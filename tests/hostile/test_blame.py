"""Messages that name the true cause: each of these once blamed something else."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from conftest import batch_for, build
from hf_layerdrop import evaluate_depths, load_checkpoint, save_pruned, search_layers
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, OutputExistsError, TaskError
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import load_task
from integrations import needed
from strangers import answer, refused

HEAD = "BertForSequenceClassification"


def test_a_metric_that_is_none_lists_the_loss_and_the_one_that_was_meant():
    for metric, meant in (("acc", "accuracy"), ("Accuracy", "accuracy"), ("los", "loss"), ("ppl", None), ("", None)):
        with pytest.raises(TaskError, match=r"Known: accuracy, f1, .*, loss, perplexity") as caught:
            evaluate_depths(build(HEAD), [batch_for(HEAD)], depths=[2], metric=metric, progress=False)
        assert ("did you mean" in str(caught.value)) == (meant is not None)
        assert meant is None or f"did you mean {meant!r}?" in str(caught.value)


def test_a_search_says_the_same():
    with pytest.raises(TaskError, match=r"did you mean 'accuracy'.*loss"):
        search_layers(build(HEAD), [batch_for(HEAD)] * 4, metric="acc", strategy="first", depth=2)


def test_data_that_nobody_checked_is_no_data_of_a_task(rows):
    datasets = needed("datasets")
    task = load_task("sst2")
    raw = datasets.DatasetDict(validation=datasets.Dataset.from_csv(str(rows)))
    for data in (raw, raw["validation"], None, [1]):
        with pytest.raises(TaskError, match=rf"The data is a {type(data).__name__}, .*load_task_data\(task\)"):
            task.encode(data, None)
    assert load_task_data(task, validation_file=rows, train=False).validation["validation"].num_rows == 20


def test_targets_that_are_cut_are_not_called_rows(tmp_path):
    """A short text with a long summary: no row is longer than the limit of inputs."""
    needed("datasets")
    from hf_layerdrop.checkpoints.tokenizers import train_tokenizer

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"document": "a b c a b c a b c", "summary": "c " * 40}) for _ in range(3)))
    task = load_task("summarization")
    data = load_task_data(task, validation_file=file, train=False)
    tokenizer = train_tokenizer(["a b c"] * 9, "bpe-marked", vocab_size=300)
    encoded = task.encode(data, tokenizer, max_target_length=8)
    assert list(encoded.cuts) == ["3 targets of validation are longer than 8 tokens"]
    with pytest.raises(
        TaskError, match=r"3 of 3 targets of the validation data are longer than 8 tokens.*--max-target-length"
    ):
        task.encode(data, tokenizer, max_target_length=8, strict=True)
    assert next(task.encode(data, tokenizer, max_length=5).cuts) == "3 rows of validation are longer than 5 tokens"


@pytest.mark.parametrize(
    ("head", "tied"), [(HEAD, False), ("BertForMaskedLM", True), ("BartForConditionalGeneration", True)]
)
@pytest.mark.parametrize("says", [True, False])
def test_tied_embeddings_are_those_of_the_class(head, tied, says, tmp_path, capsys):
    model = build(head, tie_word_embeddings=says)
    model.save_pretrained(tmp_path / "model")
    assert run(["inspect", str(tmp_path / "model"), "--json"]) == 0
    traps = [trap["name"] for trap in json.loads(capsys.readouterr().out)["traps"]]
    assert ("tied weights" in traps) == (tied and says)


def test_a_mount_point_is_said_to_be_one(model, tmp_path, monkeypatch, capsys):
    output = tmp_path / "mounted"
    output.mkdir()
    real = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output or real(path))
    words = ["prune", model, "--keep-layers", "2", "--output", output, "--overwrite"]
    assert "is where a disk or volume is mounted" in refused(capsys, *words)
    with pytest.raises(OutputExistsError, match=r"inside of it, such as .*mounted/model"):
        save_pruned(model, output, keep_layers=2, overwrite=True)
    save_pruned(model, output / "model", keep_layers=2)


def test_so_is_one_that_only_renaming_shows(model, tmp_path, monkeypatch):
    output = save_pruned(model, tmp_path / "bound", keep_layers=2)
    real = Path.rename

    def rename(path, target):
        if path == output:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputExistsError, match="is where a disk or volume is mounted"):
        save_pruned(model, output, keep_layers=[0], overwrite=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_loader_that_drops_its_last_batch_is_named(tmp_path):
    from transformers import Trainer

    model = build(HEAD)
    batch = batch_for(HEAD)
    examples = [{name: value[0] for name, value in batch.items()}] * 3
    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=8, dataloader_drop_last=True, use_cpu=True, report_to="none"
    )
    trainer = Trainer(model, arguments, eval_dataset=examples)
    with pytest.raises(TaskError, match="dataloader_drop_last"):
        evaluate_depths(trainer, depths=[2], progress=False)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_of_bitsandbytes_is_cut_and_saved(bits, tmp_path, capsys):
    """Transformers saves none that it loaded in 4 bit, in the form that is its default."""
    needed("bitsandbytes")
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    build(HEAD, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "plain")
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=["classifier"])
    quantized = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", quantization_config=quantization)
    quantized.save_pretrained(tmp_path / "model")
    save_pruned(tmp_path / "model", tmp_path / "out", keep_layers=[1, 3], tokenizer=False)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    expected = load_checkpoint(tmp_path / "model", keep_layers=[1, 3]).eval()
    batch = batch_for(HEAD)
    assert plain.config.num_hidden_layers == 2
    assert torch.equal(plain(**batch).logits, expected(**batch).logits)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.5, "do_sample": False}, {"num_beams": 0}, {"top_k": -1}, {"max_length": "x"}]
)
def test_generation_settings_that_are_not_saved_again_are_named(settings, tmp_path, capsys):
    build("BartForConditionalGeneration").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    words = [
        "prune",
        tmp_path / "model",
        "--keep-layers",
        "encoder=2;decoder=2",
        "--output",
        tmp_path / "out",
        "--no-tokenizer",
    ]
    assert answer(capsys, *words) == (0 if (tmp_path / "out").exists() else 2)


def test_a_broken_tokenizer_is_not_called_missing(tmp_path):
    from hf_layerdrop.checkpoints.tokenizers import load_tokenizer

    folder = save_classifier(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    (folder / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"The tokenizer of .* cannot be read"):
        load_tokenizer(str(folder))


LONG_HEADERS = {
    "lists": [f"encoder{number}.layer.{number % 7}.weight" for number in range(4000)],
    "one name": ["0." * 140_000],
    "long names": [f"{number}." + "layer.0." * 1000 for number in range(35)],
    "deep names": [f"bert.encoder.layer.{number}." + "1.2.3." * 400 for number in range(100)],
    "layers": [f"bert.encoder.layer.{number}.output.dense.weight" for number in range(4, 5000)],
}


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ("lists", {"architectures": None}),
        ("layers", {"architectures": None}),
        ("one name", {"num_hidden_layers": 10**9}),
        ("deep names", {"num_hidden_layers": 10**9}),
        ("long names", {}),
    ],
    ids=str,
)
def test_long_headers_do_not_slow_inspect(names, fields, model, tmp_path, capsys):
    """Of 300 KB with many lists that look like stacks: it took fifteen seconds."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))
    more = {name: torch.zeros(1) for name in LONG_HEADERS[names]}
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors", {"format": "pt"})
    answer(capsys, "inspect", folder)
