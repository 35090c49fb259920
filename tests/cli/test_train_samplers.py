"""Options of ``train`` for sets, scales and the pretraining recipe, and what a checkpoint says of them afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifiers import model, rows  # noqa: F401 - fixtures
from hf_layerdrop.cli import run
from hf_layerdrop.models.auto import AutoLayerDropModelForSequenceClassification
from hf_layerdrop.reports.card import describe_training

TRAINER = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--max_steps", "2", "--eval-depths", "2"]


@pytest.fixture
def command(rows: Path, tmp_path: Path) -> list[str]:
    data = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    return ["train", *data, *TRAINER, "--output_dir", str(tmp_path / "run")]


def trained_with(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["hf_layerdrop"]["trained_with"]


def test_the_pretraining_recipe_by_one_word(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run([*command, "--config", "llama-4x16", "--layerdrop", "0.3", "--preset", "pretraining"]) == 0
    said = capsys.readouterr().out
    assert "schedule falling" in said
    assert "0 0.1 0.2 0.3" in " ".join(said.split())
    settings = trained_with(tmp_path / "run")
    assert {name: settings[name] for name in ("rate", "shape", "scale", "schedule")} == {
        "rate": 0.3, "shape": "linear", "scale": "kept", "schedule": "falling",
    }  # fmt: skip
    assert describe_training(settings) == "0.3, linear shape, kept scale, falling schedule"


def test_nested_sets_by_one_word(command: list[str], model: Path, tmp_path: Path) -> None:
    assert run([*command, "--model", str(model), "--layerdrop", "0.3", "--sampler", "depth", "--nested"]) == 0
    assert trained_with(tmp_path / "run")["nested"] is True
    run(["prune", str(tmp_path / "run"), "--keep-layers", "nested:3", "--output", str(tmp_path / "cut")])
    config = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path / "cut").config
    assert config.hf_layerdrop["keep_layers"] == {"encoder": [0, 1, 3]}
    assert config.hf_layerdrop["strategy"] == "nested"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layerdrop", "0.2", "--scale", "kept"], "post-norm"),
        (["--layerdrop", "0.2", "--preset", "pretraining"], "post-norm"),
        (["--layerdrop", "0.2", "--preset", "pretrain"], "--preset is 'pretrain'; it must be pretraining"),
        (["--layerdrop", "0.2", "--nested"], "sampler='depth'"),
        (["--layerdrop", "0.2", "--schedule", "early:share=x"], "write its numbers"),
        (["--preset", "pretraining"], "need a rate"),
        (["--nested"], "need a rate"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_step(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], said: str
) -> None:
    assert run([*command, "--model", str(model), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
