"""The commands that measure under a launch: two processes write and say what one does, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from classifiers import save_classifier
from hf_layerdrop.cli import run
from ranks import as_by_torchrun, free_port
from warm import run_python

DATA = ("--text-columns", "sentence", "--label-column", "label", "--batch-size", "4")
TIMES = ("seconds_per_batch", "machine")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make two folders that hold the same model and the same 22 rows: one for a process, one for two."""
    folder = tmp_path_factory.mktemp("launch")
    lines = [f"{'good' if i % 3 else 'bad'} {'not ' * (i % 4)}film,{int(i % 5 > 1)}" for i in range(22)]
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "rows.csv").write_text("\n".join(["sentence,label", *lines]))
    save_classifier(folder / "one" / "model")
    shutil.copytree(folder / "one" / "model", folder / "two" / "model")
    return folder / "one", folder / "two"


def words(command: str, folder: Path, *more: str) -> list[str]:
    rows = str(folder / "rows.csv")
    return [command, str(folder / "model"), "--validation-file", rows, *DATA, *more]


def said_by_two(*given: str) -> str:
    port = free_port()
    done = run_python(
        "-m", "hf_layerdrop", *given, environments=[as_by_torchrun(rank, 2, port) for rank in range(2)], seconds=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def read(file: Path) -> Any:
    return without_times(json.loads(file.read_text()))


def test_a_search(places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = places
    more = ("--depth", "2", "--strategy", "exhaustive", "--metric", "loss")
    assert run([*words("search", one, *more), "--output", str(one / "selection.json")]) == 0
    alone = capsys.readouterr().out
    said = said_by_two(*words("search", two, *more), "--output", str(two / "selection.json"))
    assert (two / "selection.json").read_bytes() == (one / "selection.json").read_bytes()
    assert said.replace(str(two), str(one)) == alone
    lines = [(place / "selection.json.journal").read_text().splitlines() for place in places]
    assert sorted(map(str, map(without_times, map(json.loads, lines[0])))) == sorted(
        map(str, map(without_times, map(json.loads, lines[1])))
    )
    assert read(two / "model" / "layerdrop.json") == read(one / "model" / "layerdrop.json")


def test_a_sweep(places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = places
    assert run([*words("sweep", one), "--output", str(one / "sweep")]) == 0
    capsys.readouterr()
    said = said_by_two(*words("sweep", two), "--output", str(two / "sweep"))
    assert read(two / "sweep" / "depth_results.json") == read(one / "sweep" / "depth_results.json")
    assert said.count("cut without finetuning") == 1
    assert said.count("Wrote ") == 2
