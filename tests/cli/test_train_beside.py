"""Options of ``train`` beside each other: what is measured, written down and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifiers import model, rows  # noqa: F401 - fixtures
from hf_layerdrop.cli import run
from hf_layerdrop.results.table import read_results


@pytest.fixture
def command(rows: Path, tmp_path: Path) -> list[str]:
    data = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    flags = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--max_steps", "1"]
    return ["train", *data, *flags, "--output_dir", str(tmp_path / "run")]


def test_nested_sets_are_measured_where_they_are_trained(command: list[str], tmp_path: Path) -> None:
    drop = ["--layerdrop", "0.3", "--sampler", "depth", "--nested"]
    assert run([*command, "--config", "tiny-8x16", *drop]) == 0
    measured = [record.keep_layers["encoder"] for record in read_results(tmp_path / "run" / "depth_results.json")]
    assert measured == [tuple(range(8)), (0, 3, 5, 7), (0, 7), (7,)]


def test_a_schedule_beside_a_preset_is_the_one_that_is_written_down(command: list[str], tmp_path: Path) -> None:
    preset = ["--layerdrop", "0.3", "--preset", "pretraining", "--schedule", "early:share=0.5", "--eval-depths", "2"]
    assert run([*command, "--config", "llama-4x16", *preset]) == 0
    noted = json.loads((tmp_path / "run" / "config.json").read_text())["hf_layerdrop"]["trained_with"]
    assert noted["schedule"] == "early:share=0.5"


@pytest.mark.parametrize("option", [["--nested"], ["--granularity", "row"], ["--preset", "pretraining"]])
def test_what_draws_is_refused_beside_depths(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert run([*command, "--model", str(model), "--depths", "4,2", *option]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "leave them out" in said
    assert "give --layerdrop" not in said
    assert not (tmp_path / "run").exists()


def test_nested_sets_are_trained_by_name(command: list[str], tmp_path: Path) -> None:
    assert run([*command, "--config", "tiny-8x16", "--depths", "nested:4,nested:2"]) == 0
    measured = [record.keep_layers["encoder"] for record in read_results(tmp_path / "run" / "depth_results.json")]
    assert measured == [(0, 3, 5, 7), (0, 7)]
