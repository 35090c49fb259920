"""``train --granularity row``: from the flag to the layers that ran, and into the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_layerdrop import AutoLayerDropModelForSequenceClassification, layerdrop_state
from hf_layerdrop.cli import run
from hf_layerdrop.tasks.embedded import embedded_sst2


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    table = embedded_sst2()["train"][:32]
    rows = [{"sentence": text, "label": label} for text, label in zip(table["sentence"], table["label"], strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["--train-file", str(tmp_path / "rows.jsonl"), "--validation-file", str(tmp_path / "rows.jsonl")]
    how = ["--config", "tiny-4x16", "--max_steps", "2", "--use_cpu", "--report_to", "none", "--eval-depths", "4"]
    return ["train", "--task", "sst2", *files, *how, "--output_dir", str(tmp_path / "run")]


def test_each_row_drops_its_own_layers_and_the_checkpoint_knows(command: list[str], tmp_path: Path) -> None:
    flags = ["--layerdrop", "0.5", "--granularity", "row", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
    assert run([*command, *flags]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [entry["layerdrop_layers_used"] for entry in state["log_history"] if "loss" in entry] == [2, 2]
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert layerdrop_state(model).config.granularity == "row"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--granularity", "row"], "give --layerdrop too"),
        (["--granularity", "token", "--layerdrop", "0.5"], "granularity is 'token'"),
        (["--granularity", "row", "--layerdrop", "0.5", "--sampler", "depth"], "give sampler='bernoulli'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    command: list[str], flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, *flags]) == 2
    assert said in capsys.readouterr().err
