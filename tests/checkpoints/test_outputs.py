"""Files and folders appear whole or not at all, as readable as any other, and nothing is left of a killed writer."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from hf_layerdrop.checkpoints.outputs import check_replaceable, whole_file, whole_folder, write_whole
from hf_layerdrop.errors import OutputExistsError


class StopError(Exception):
    """What goes wrong while something is written."""


def files_below(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail_while_writing(file: Path) -> None:
    with whole_file(file) as new:
        new.write("two")
        raise StopError


def fail_while_making(folder: Path) -> None:
    with whole_folder(folder) as new:
        (new / "a").write_text("one")
        raise StopError


def be_late(folder: Path) -> None:
    with whole_folder(folder, lambda: check_replaceable(folder, overwrite=False)) as new:
        (new / "a").write_text("one")
        folder.mkdir()
        (folder / "theirs").write_text("theirs")


def die_while_writing(path: Path, kind: str) -> None:
    with whole_file(path) if kind == "file" else whole_folder(path) as new:
        if kind == "file":
            new.write("half")
            new.flush()
        else:
            (new / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def killed(path: Path, kind: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(path, kind))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as file:
        file.write("one")
        assert not path.exists()
    assert files_below(tmp_path) == {"new/file.txt": "one"}
    with pytest.raises(StopError):
        fail_while_writing(path)
    assert files_below(tmp_path) == {"new/file.txt": "one"}
    write_whole(path, "three")
    assert files_below(tmp_path) == {"new/file.txt": "three"}


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(StopError):
        fail_while_making(path)
    assert list(tmp_path.iterdir()) == []
    with whole_folder(path) as new:
        (new / "sub").mkdir()
        (new / "sub" / "a").write_text("one")
        assert not path.exists()
    with whole_folder(path) as new:
        (new / "b").write_text("two")
    assert files_below(tmp_path) == {"new/folder/b": "two"}


def test_a_folder_that_came_while_another_was_written_is_not_replaced(tmp_path):
    with pytest.raises(OutputExistsError):
        be_late(tmp_path / "folder")
    assert files_below(tmp_path) == {"folder/theirs": "theirs"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_is_as_readable_as_other_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "file", "text")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_removes_what_a_killed_one_left(tmp_path, kind):
    path, other = tmp_path / "re[port]*", tmp_path / "re[port]*2"
    killed(path, kind)
    killed(other, kind)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 2
    for left in tmp_path.iterdir():  # a writer that is a moment old may be about to lock it
        os.utime(left, (0, 0))
    if kind == "file":
        write_whole(path, "whole")
    else:
        with whole_folder(path) as new:
            (new / "a").write_text("whole")
    names = sorted(place.name for place in tmp_path.iterdir())
    assert names[1:] == [path.name]
    assert names[0].startswith(f".{other.name}.new-")


def test_what_another_writer_has_just_made_is_left_alone(tmp_path):
    """It is not locked yet, as what a killed one left is not."""
    made = tmp_path / ".report.new-12345678"
    made.write_text("theirs")
    write_whole(tmp_path / "report", "ours")
    assert made.read_text() == "theirs"


def test_a_writer_that_lives_is_left_alone(tmp_path):
    with whole_file(tmp_path / "file") as first:
        first.write("first")
        write_whole(tmp_path / "file", "second")
        assert (tmp_path / "file").read_text() == "second"
    assert files_below(tmp_path) == {"file": "first"}
    with whole_folder(tmp_path / "folder") as first:
        (first / "a").write_text("first")
        with whole_folder(tmp_path / "folder") as second:
            (second / "b").write_text("second")
    assert files_below(tmp_path / "folder") == {"a": "first"}


def test_a_replaced_folder_that_was_moved_aside_goes_with_the_next_one(tmp_path):
    (tmp_path / ".folder.old-01234567").mkdir()
    with whole_folder(tmp_path / "folder") as new:
        (new / "a").write_text("one")
    assert [place.name for place in tmp_path.iterdir()] == ["folder"]
