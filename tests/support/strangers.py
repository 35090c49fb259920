"""What a stranger may have written, and the check of what becomes of it: one sentence, soon, and nothing written."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path

from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError

# More of everything where time allows: HOSTILE=20 tries twenty times as much.
SCALE = int(os.environ.get("HOSTILE", "1"))
LONGEST = 5.0  # seconds, of this process
NESTED = "[" * 10_000 + "]" * 10_000
VALUES = [
    *(None, True, -1, 0, 3, 10**9, 10**18, 1.5, float("nan"), float("inf"), "", "x", "\u00b2", "\ud800", "../../x"),
    *([], {}, [[]], [0, "x"], {"x": {}}, ["x"] * 3, "\x1b[2J", "y" * 5000),
]


@contextmanager
def soon():
    """Fail where the block takes longer than anybody waits for a refusal."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < LONGEST


def taken_or_refused(door):
    """Call a function that may work, or refuse in one line."""
    with soon():
        try:
            return door()
        except LayerDropError as error:
            said = str(error)
            assert "\n" not in said, said
            return None


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys, *words, code: int = 2) -> str:
    """Run a command that has to refuse, and return its one sentence."""
    capsys.readouterr()
    with soon():
        found = run([str(word) for word in words])
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("Error: ")]  # others show bars
    assert (found, len(lines)) == (code, 1), f"{found}: {said}"
    assert said.endswith(f"{lines[0]}\n")
    assert len(lines[0]) < 5000
    return lines[0]


def answer(capsys, *words) -> int:
    """Run a command that may work or refuse; whichever it does, it does properly."""
    capsys.readouterr()
    with soon():
        code = run([str(word) for word in words])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert code in (0, 2), f"{words[:1]} exits with {code}: {said}"
    assert len(said) == (code == 2), said
    return code
