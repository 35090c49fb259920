"""Where results may be written, and how: a file or folder appears whole, or not at all.

Both are made beside their place under a name that begins with a dot, are on the disk before they take their name, and
are as readable as whatever else the user writes. What a killed process left is removed by a later write to the place.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hf_layerdrop.checkpoints.companions import companion_files
from hf_layerdrop.errors import OutputExistsError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: what a killed process leaves stays there
    flock = None  # type: ignore[assignment]


_SECONDS_TO_LOCK = 60
_BYTES_OF_A_TRIAL = 4096
_LONGEST_NAME = 200  # what is made beside a longer one is named by its hash, as file systems take 255 bytes

# What lies in a folder that save_pruned, train or distill wrote.
_SAVED_ENDINGS = {".safetensors", ".json", ".md", ".png", ".svg", ".jinja"}
_SAVED_ENDINGS |= {".txt", ".model", ".spm", ".tiktoken", ".codes", ".tokenizer"}  # of tokenizers
_SAVED_FILES = ("training_args.bin",)
_SAVED_FOLDERS = ("additional_chat_templates",)


def check_above(output: Path) -> None:
    """Refuse a file or folder that could not be made, because what lies above it is no folder.

    Raises:
        OutputExistsError: If there is a file above it, or the system knows no such path.
    """
    try:
        above = next((place for place in (output, *output.parents) if place.exists()), output)
    except OSError as error:  # a name that is too long
        raise _not_writable(output, error) from error
    if above != output and not above.is_dir():
        raise OutputExistsError(
            f"{str(output)!r} cannot be written, since {str(above)!r} is a file and not a folder: choose another place."
        )


def check_writable(path: Path) -> None:
    """Refuse a place that does not take what is written there: it is tried, before any work is done for it.

    Nothing is left of the try, and nothing is there under the path meanwhile. Of a folder that others write into, give
    a file in it.

    Raises:
        OutputExistsError: If the system refuses it: no permission, a name that is too long, a full disk.
    """
    try:
        check_above(path)
        path = Path(os.path.abspath(path))
        above = next(folder for folder in path.parents if folder.exists())
        trial = _new_name(above / "hf_layerdrop")
        try:
            (trial / path.relative_to(above)).parent.mkdir(parents=True)
            (trial / path.relative_to(above)).write_bytes(bytes(_BYTES_OF_A_TRIAL))
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> OutputExistsError:
    written = repr(str(path))
    shown = written if len(written) < _LONGEST_NAME else f"{written[:60]}...'"
    reason = error.strerror or type(error).__name__
    return OutputExistsError(f"{shown} cannot be written ({reason}): give another place, or make this one writable.")


def check_apart(output_dir: Path, source: str | os.PathLike[str]) -> None:
    """Refuse an output folder that is the checkpoint that is read, lies inside of it, or has it inside.

    Raises:
        OutputExistsError: For each of these, under whatever name.
    """
    check_above(output_dir)
    if not Path(source).is_dir():
        return
    output, read = output_dir.resolve(), Path(source).resolve()
    if output == read or output in read.parents or read in output.parents:
        where = "is" if output == read else "holds" if output in read.parents else "lies inside of"
        raise OutputExistsError(
            f"{str(output_dir)!r} {where} the checkpoint that is read, {os.fspath(source)!r}: give another output."
        )


def check_replaceable(output_dir: Path, overwrite: bool) -> None:
    """Refuse a folder that exists, unless it is a checkpoint that may be overwritten.

    Raises:
        OutputExistsError: If it must not be replaced, or could not be made.
    """
    check_above(output_dir)
    if not (output_dir.exists() or output_dir.is_symlink()):
        return
    if os.path.ismount(output_dir):
        raise OutputExistsError(_mounted(output_dir))
    if not overwrite:
        raise OutputExistsError(
            f"The output folder {str(output_dir)!r} exists already: choose another one, or allow overwriting it."
        )
    # a slip in a path must not cost a home folder: only what a save made is replaced
    is_ours = output_dir.is_dir() and ((output_dir / "config.json").is_file() or not any(output_dir.iterdir()))
    if not is_ours or output_dir.is_symlink():
        raise OutputExistsError(
            f"{str(output_dir)!r} is not a checkpoint folder, and only those are overwritten: choose another folder."
        )
    companions = {path.relative_to(output_dir).parts[0] for path in companion_files(output_dir)}
    if others := sorted(path.name for path in output_dir.iterdir() if not _is_saved(path, companions)):
        raise OutputExistsError(
            f"{str(output_dir)!r} holds {others[0]!r}, which no save of a checkpoint makes and which would be "
            "lost: move it away, or choose another folder."
        )


def _mounted(output: Path) -> str:
    return (
        f"{str(output)!r} is where a disk or volume is mounted, which cannot be replaced by another folder: give a "
        f"folder inside of it, such as {str(output / 'model')!r}."
    )


def _is_saved(path: Path, companions: Collection[str]) -> bool:
    """Tell what a save of a model, with tokenizer, companions and card, writes from what somebody else put there."""
    if path.is_dir():
        of_hub = path.name == ".cache" and [one.name for one in path.iterdir()] == ["huggingface"]
        return (of_hub or path.name in (*_SAVED_FOLDERS, *companions)) and not path.is_symlink()
    return path.name in (*_SAVED_FILES, *companions) or path.suffix in _SAVED_ENDINGS


def check_new_file(file: Path, what: str, overwrite: bool) -> None:
    """Refuse a file that exists, unless it may be overwritten; ``what`` names it in the message.

    Raises:
        OutputExistsError: If it must not be replaced.
    """
    if file.exists() and not overwrite:
        raise OutputExistsError(f"The {what} {str(file)!r} exists: give another, or overwrite=True.")


@contextmanager
def whole_file(path: Path, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Give a text file to write, and put it in its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _new_name(path)
    try:
        new.touch(exist_ok=False)
        with _locked(new):
            with new.open("w", encoding="utf-8", newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; see `whole_file`."""
    with whole_file(path, newline="\n") as file:
        file.write(text)


@contextmanager
def whole_folder(output_dir: Path, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Give a new folder, and put it in the place of ``output_dir`` when the block ends without an error.

    Args:
        output_dir: The folder to make, or to replace.
        check: Raises an error where it must not be; asked again at the end, as writing takes a while.
    """
    output_dir = Path(os.path.abspath(output_dir))  # "." has no name to make another of
    check()
    made = [above for above in output_dir.parents if not above.exists()]
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    new = _new_name(output_dir)
    try:
        new.mkdir()
        with _locked(new):
            yield new
            check()
            _sync(new)
            _put(new, output_dir)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):  # one that is not empty: all went well, or someone else uses it by now
            for above in made:
                above.rmdir()


def _put(new: Path, output_dir: Path) -> None:
    old = output_dir.with_name(new.name.replace(".new-", ".old-"))
    try:
        if output_dir.exists():
            output_dir.rename(old)
        new.rename(output_dir)
    except BaseException as error:
        if old.exists() and not output_dir.exists():
            old.rename(output_dir)
        if isinstance(error, OSError) and error.errno == errno.EBUSY:  # one that is not told by its place: a bind mount
            raise OutputExistsError(_mounted(output_dir)) from error
        raise
    for old in _siblings(output_dir, "old"):  # also one whose process was killed between the two names
        shutil.rmtree(old, ignore_errors=True)


def _new_name(path: Path) -> Path:
    """Return a name beside a path, after removing what writers that no longer live have left there.

    What is younger than a minute may be of a writer that is about to lock it.
    """
    for left in _siblings(path, "new"):
        with suppress(OSError), _locked(left) as free:
            if free and left.stat().st_mtime < time.time() - _SECONDS_TO_LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f"{_hidden(path)}.new-{uuid.uuid4().hex[:8]}")


def _siblings(path: Path, mark: str) -> list[Path]:
    return list(path.parent.glob(f"{glob.escape(_hidden(path))}.{mark}-????????"))


def _hidden(path: Path) -> str:
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()[:16]}"


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock, which ends with the process however that ends; give False where another has it or there is none."""
    if flock is None:
        yield False
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        flock(handle, LOCK_EX | LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
