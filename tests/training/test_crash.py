"""A run that is killed with SIGKILL at any moment, and started again, ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

import warm
from conftest import build
from crash_worker import SAVE_STEPS, STEPS, Death, prepare, run
from hf_layerdrop.errors import CheckpointError, OutputExistsError
from hf_layerdrop.training.train import check_output, last_complete_checkpoint
from ranks import as_by_torchrun, free_port

MOMENTS = int(os.environ.get("CRASH_MOMENTS", "2"))  # random ones for two ranks; more of them take longer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    prepare(folder)
    return folder


def start(model: Path, output: Path, death: Death = Death(), ranks: int = 1, counted: object = None) -> list[int]:
    """Run until all processes have ended, and return their exit codes; when one dies the others are ended."""
    port = free_port()
    environments = [as_by_torchrun(rank, ranks, port) for rank in range(ranks)] if ranks > 1 else [{}]
    codes = warm.end_together([warm.start(run, model, output, death, place, counted) for place in environments])
    assert None not in codes, "it hangs"
    return codes


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], int]:
    """The weights at the end of a run that nobody disturbs, and how many calls of functions it takes."""
    output, counted = tmp_path_factory.mktemp("whole") / "run", warm.SERVER.Value("q", 0)
    assert start(model, output, counted=counted) == [0]
    assert not same(weights(output), weights(output / f"checkpoint-{STEPS - STEPS % SAVE_STEPS}"))
    return weights(output), counted.value


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment(model: Path, tmp_path: Path, uninterrupted: tuple, seed: int) -> None:
    expected, calls = uninterrupted
    moment = Death(calls=random.Random(seed).randint(calls // 20, calls * 9 // 10))
    assert start(model, tmp_path / "run", moment) == [-signal.SIGKILL]
    assert not (tmp_path / "run" / "depth_results.json").exists()
    assert start(model, tmp_path / "run") == [0]
    assert same(weights(tmp_path / "run"), expected)


@pytest.mark.parametrize(
    ("file", "share"),
    [
        ("training_args.bin", 0.5),  # after the weights
        ("optimizer.pt", 0.5),
        ("rng_state.pth", 0.5),
        ("trainer_state.json", 0.0),
        ("trainer_state.json", 0.5),
    ],
)
def test_killed_inside_a_save(model: Path, tmp_path: Path, uninterrupted: tuple, file: str, share: float) -> None:
    output, second = tmp_path / "run", f"checkpoint-{2 * SAVE_STEPS}"
    assert start(model, output, Death(inside=f"{second}/{file}", share=share)) == [-signal.SIGKILL]
    assert Path(get_last_checkpoint(output)).name == second  # what Trainer would take
    assert last_complete_checkpoint(output).name == f"checkpoint-{SAVE_STEPS}"
    assert start(model, output) == [0]
    assert same(weights(output), uninterrupted[0])
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == STEPS


def test_killed_again_and_again(model: Path, tmp_path: Path, uninterrupted: tuple) -> None:
    output = tmp_path / "run"
    for step in (1, 1, 2, 3):  # the first save twice, so that nothing is there to go on from
        assert start(model, output, Death(inside=f"checkpoint-{step * SAVE_STEPS}/optimizer.pt")) == [-signal.SIGKILL]
    assert start(model, output) == [0]
    assert same(weights(output), uninterrupted[0])


@pytest.fixture(scope="module")
def two_undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], int]:
    """The weights at the end of a run of two ranks, and how many calls of functions each takes."""
    output, counted = tmp_path_factory.mktemp("two") / "run", warm.SERVER.Value("q", 0)
    assert start(model, output, ranks=2, counted=counted) == [0, 0]
    return weights(output), counted.value


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_two_ranks_killed_at_a_random_moment(model: Path, tmp_path: Path, two_undisturbed: tuple, seed: int) -> None:
    expected, calls = two_undisturbed
    moment = Death(calls=random.Random(seed).randint(calls // 20, calls * 9 // 10))
    assert -signal.SIGKILL in start(model, tmp_path / "run", moment, ranks=2)
    assert not (tmp_path / "run" / "depth_results.json").exists()
    assert start(model, tmp_path / "run", ranks=2) == [0, 0]
    assert same(weights(tmp_path / "run"), expected)


@pytest.mark.parametrize(
    ("file", "rank"),
    [
        ("rng_state_1.pth", 1),  # rank 0 may have finished its part of the save
        ("optimizer.pt", 0),
    ],
)
def test_two_ranks_killed_inside_a_save(
    model: Path, tmp_path: Path, two_undisturbed: tuple, file: str, rank: int
) -> None:
    output, second = tmp_path / "run", f"checkpoint-{2 * SAVE_STEPS}"
    death = Death(inside=f"{second}/{file}", rank=rank)
    assert -signal.SIGKILL in start(model, output, death, ranks=2)
    assert (output / second / file).is_file()
    assert start(model, output, ranks=2) == [0, 0]
    assert same(weights(output), two_undisturbed[0])


# Which checkpoint is gone on from, without a run.


def checkpoint(folder: Path, ranks: int = 1) -> Path:
    """Write what makes a checkpoint complete."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    for name in ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]:
        torch.save(torch.zeros(1), folder / name)
    return folder


def cut_state(folder: Path) -> None:
    (folder / "trainer_state.json").write_text('{"global_st')


def no_random_state(folder: Path) -> None:
    (folder / "rng_state.pth").unlink()


def cut_random_state(folder: Path) -> None:
    path = folder / "rng_state.pth"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [cut_state, no_random_state, cut_random_state])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    first, second, third = (checkpoint(tmp_path / f"checkpoint-{step}") for step in (2, 9, 10))
    damage(third)
    assert check_output(tmp_path, resume="last") == check_output(tmp_path, resume="auto") == second
    with pytest.raises(CheckpointError, match="checkpoint-10"):
        check_output(tmp_path, resume=str(third))
    damage(second)
    damage(first)
    assert last_complete_checkpoint(tmp_path) is None
    assert check_output(tmp_path, resume="auto", overwrite=True) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        check_output(tmp_path, resume="last")


def test_auto_starts_anew_where_nothing_is(tmp_path: Path) -> None:
    assert check_output(tmp_path / "run", resume="auto") is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputExistsError):
        check_output(tmp_path, resume="auto")


def test_going_back_would_write_over_later_checkpoints(tmp_path: Path) -> None:
    first, _ = (checkpoint(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    with pytest.raises(OutputExistsError, match="checkpoint-4"):
        check_output(tmp_path, resume=str(first))
    assert check_output(tmp_path, resume=str(first), overwrite=True) == first


def test_another_number_of_processes_has_to_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = checkpoint(tmp_path / "checkpoint-2", ranks=2)
    with pytest.raises(CheckpointError, match="2 processes and this run has 1"):
        check_output(tmp_path, resume="auto", overwrite=True)
    assert check_output(tmp_path, resume=str(first)) == first
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check_output(tmp_path, resume="last") == first
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(CheckpointError, match="2 processes and this run has 4"):
        check_output(tmp_path, resume="last")
    whole = checkpoint(tmp_path / "checkpoint-4", ranks=4)
    cut_short = checkpoint(tmp_path / "checkpoint-6", ranks=2)  # ranks 2 and 3 did not come to it
    assert check_output(tmp_path, resume="last") == whole
    shutil.rmtree(cut_short)


def test_a_checkpoint_of_another_depth_is_refused(tmp_path: Path) -> None:
    from hf_layerdrop.training.train import _check_fits

    build("BertForSequenceClassification", num_hidden_layers=6).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="6 layers"):
        _check_fits(tmp_path, build("BertForSequenceClassification"))
    build("BertForSequenceClassification").save_pretrained(tmp_path)
    _check_fits(tmp_path, build("BertForSequenceClassification"))
