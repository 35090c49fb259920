"""The door for files that others wrote: regular files of bounded size, and one sentence for whatever is wrong in them.

A config, an index, a selection, a recipe or a journal may come from anyone. Nothing is opened that could be waited for
(a pipe, a device, whatever link leads there), and nothing is read without an end. What reading and understanding such a
file raises, whichever library does it, becomes one sentence that names the file; the error itself is chained.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hf_layerdrop.errors import LayerDropError, said_by

LARGEST = 100_000_000  # bytes, of what lists weights or measurements
LARGE = 10_000_000  # of a config, and of whatever else people write
_LARGEST_YAML = 200_000  # its reader takes a second for them
_MOST_VALUES = 100_000  # of YAML: ten lines of it, each naming the one before ten times, say a billion
_LONGEST_REASON = 500  # characters

PathLike = str | os.PathLike[str]


class Unreadable(Exception):
    """A file that is not read, or not what it should be; the message is the reason alone."""


@contextmanager
def admitting(refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Turn whatever understanding a stranger's file raises into one error; nothing else may be done in the block.

    Args:
        refusal: Makes the error, given the reason in a few words.
    """
    try:
        yield
    except LayerDropError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise refusal(reason_of(error)) from error


def out_of_memory(error: BaseException) -> bool:
    """Tell an error that is no file's fault; torch's own, which is not imported here, by its name."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def reason_of(error: BaseException) -> str:
    """Say in a few words, on one line, what an error means for a file."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, Unreadable):
        return str(error)
    return said_by(error)[:_LONGEST_REASON]


def check_kind(file: PathLike, most: int | None = None) -> None:
    """Refuse what is no regular file, or a larger one than ``most`` bytes; links are followed, as the Hub's cache is.

    Raises:
        Unreadable: If it is one, or there is no such file.
    """
    try:
        found = os.stat(file)
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or "there is no such name") from error
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("Is a directory" if stat.S_ISDIR(found.st_mode) else "it is a pipe or device, and not a file")
    if most is not None and found.st_size > most:
        _too_large(most)


def read_bytes(file: PathLike, most: int = LARGE) -> bytes:
    """Read a file of at most so many bytes.

    Raises:
        Unreadable: If it is none; see `check_kind`.
    """
    check_kind(file, most)
    try:
        with open(file, "rb") as opened:
            content = opened.read(most + 1)  # of some files, as those in /proc, no size is known
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    return content if len(content) <= most else _too_large(most)


def read_text(file: PathLike, most: int = LARGE) -> str:
    """Read a file of text; see `read_bytes`."""
    content = read_bytes(file, most)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(reason_of(error)) from error


def read_json(file: PathLike, most: int = LARGE) -> Any:
    """Read a file of JSON; see `read_bytes`."""
    return parsed(read_text(file, most))


def parsed(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        Unreadable: If it is none, or nested beyond measure.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("not valid JSON" if isinstance(error, ValueError) else reason_of(error)) from error


def read_strict_json(file: PathLike, most: int) -> Any:
    """Read a file of JSON in which no name stands twice in one place, and no number is one that JSON has not (NaN)."""
    text = read_text(file, most)
    parsed(text)
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
    except RecursionError as error:
        raise Unreadable(reason_of(error)) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Unreadable(f"it says {twice[:60]!r} twice in one place")
    return found


def _no_number(text: str) -> NoReturn:
    raise Unreadable(f"it has {text} where a number is wanted")


def read_yaml(file: PathLike) -> Any:
    """Read a file of YAML, which JSON is too; see `read_bytes`."""
    import yaml

    text = read_text(file, _LARGEST_YAML)
    try:
        return _of_bounded_size(yaml.safe_load(text))
    except Unreadable:
        raise
    except Exception as error:  # of the scalars too: an impossible date, a number of a thousand digits
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else reason_of(error)
        raise Unreadable(reason[:_LONGEST_REASON]) from error


def _of_bounded_size(values: Any) -> Any:
    count, rest = 0, [values]
    while rest:
        value = rest.pop()
        count += 1 + (len(value) // 10 if isinstance(value, str) else 0)
        if count > _MOST_VALUES:
            raise Unreadable("what it says is too long, written out")
        if isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            rest += value
    return values


def _too_large(most: int) -> NoReturn:
    raise Unreadable(f"it is larger than {most / 10**6:g} MB")
