"""`hf-layerdrop train --depths`: one flag trains a list of depths, measures each, and prints the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifiers import bart, model, rows  # noqa: F401 - fixtures
from hf_layerdrop.cli import run
from hf_layerdrop.results.table import read_results


@pytest.fixture
def command(rows: Path, tmp_path: Path) -> list[str]:
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--task", "sst2"]
    flags = ["--max_steps", "4", "--use_cpu", "--report_to", "none", "--logging_steps", "2", "--disable_tqdm"]
    return ["train", *files, *flags, "--output_dir", str(tmp_path / "run")]


def test_it_trains_one_depth_a_step_measures_each_and_prints_the_table(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--model", str(model), "--depths", "4,3,2"]) == 0
    printed = capsys.readouterr().out
    assert "Each step trains 1 of depth_4, depth_3, depth_2." in printed
    assert "accuracy" in printed
    spent = int(printed.split(" layer forwards in 4 steps")[0].split()[-1])
    assert 4 * 2 <= spent <= 4 * 4
    assert [record.depth for record in read_results(tmp_path / "run" / "depth_results.json")] == [4, 3, 2]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_several_depths_a_step_learn_from_the_whole_model(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--model", str(model), "--depths", "4,3,2", "--depths-per-step", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Each step trains depth_4 and depth_2, and 1 of depth_3." in printed
    assert f"{4 * (4 + 3 + 2)} layer forwards in 4 steps" in printed
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = next(entry for entry in history if "loss" in entry)
    assert {"loss_depth_4", "loss_depth_3", "loss_depth_2"} <= set(logged)


def test_stacks_are_trained_in_pairs_and_other_depths_may_be_measured(
    command: list[str], bart: Path, tmp_path: Path, model: Path
) -> None:
    tokenizer = [path for path in model.iterdir() if "token" in path.name or path.name == "vocab.txt"]
    for path in tokenizer:
        (bart / path.name).write_bytes(path.read_bytes())
    given = ["--depths", "encoder=4,2;decoder=3,1", "--depths-per-step", "2", "--eval-depths", "encoder=1"]
    assert run([*command, "--model", str(bart), *given]) == 0
    measured = read_results(tmp_path / "run" / "depth_results.json")
    assert [record.keep_layers for record in measured] == [{"encoder": (3,), "decoder": (0, 1, 2)}]
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = next(entry for entry in history if "loss" in entry)
    assert {"loss_depth_encoder4_decoder3", "loss_depth_encoder2_decoder1"} <= set(logged)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--depths", "4,2", "--layerdrop", "0.2"], "leave out --layerdrop and --schedule"),
        (["--depths", "4,2", "--schedule", "linear"], "leave out --layerdrop and --schedule"),
        (["--depths", "4,9"], "9"),
        (["--depths", "4,2,2"], "twice"),
        (["--depths", "4,"], "is no list of depths"),
        (["--depths-per-step", "2"], "add --depths with a list"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_nothing_is_written(
    given: list[str], said: str, command: list[str], model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run([*command, "--model", str(model), *given]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_too_few_depths_a_step_are_refused_before_the_first_one(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--model", str(model), "--depths", "4,3,2", "--depths-per-step", "2"]) == 2
    assert "give from 3 to 3" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "config.json").exists()
