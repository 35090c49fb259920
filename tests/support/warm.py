"""Python processes that begin with torch and transformers imported, which takes longer than what most tests do in them.

A server is started once by each process of pytest, imports them, and is forked for each process that is asked for. A
test of what an import does, or of how a process is started, starts its own.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

SECONDS = 600  # a hang is a failure
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_python(
    *words: str,
    environments: Sequence[Mapping[str, str]] = ({},),
    cwd: Path | None = None,
    seconds: float = SECONDS,
) -> Done:
    """Do what ``python`` does with these words, ``-m module``, ``-c code`` or ``script``, once for each environment.

    The processes run side by side; the first that fails ends the others, as torchrun does. The code that is returned is
    the first that is not 0, and what they print is joined.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder, "output"), Path(folder, "errors")
        processes = [start(_be_python, words, changes, cwd, streams=streams) for changes in environments]
        codes = end_together(processes, seconds)
        printed, complained = (stream.read_text() if stream.exists() else "" for stream in streams)
    if None in codes:
        pytest.fail(f"{' '.join(words)[:200]} hangs after {seconds} s.\n{printed[-500:]}\n{complained[-6000:]}")
    return Done(next((code for code in codes if code), 0), printed, complained)


def start(target: Any, *arguments: Any, streams: Sequence[Path] = ()) -> BaseProcess:
    """Start a process that calls ``target``, and appends to these two files what it prints and what it complains of."""
    support = Path(__file__).parent
    path = os.pathsep.join(filter(None, [str(support), str(support.parent), os.environ.get("PYTHONPATH")]))
    SERVER.set_forkserver_preload(["warm_imports"])
    process = SERVER.Process(target=_call, args=(target, arguments, streams))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)  # where the server finds its imports; other processes shall not
        patch.setenv("PYTHONHASHSEED", "2")  # another order of sets than here, as any other process has
        process.start()
    return process


def end_together(processes: Sequence[BaseProcess], seconds: float = SECONDS) -> list[int | None]:
    """Wait until all have ended, or end them when one fails or the time is over; return their codes.

    None is the code of one that had to be ended because all of them hung.
    """
    limit = monotonic() + seconds
    alive, hung = list(processes), False
    try:
        while (alive := [process for process in processes if process.exitcode is None]) and not hung:
            # without anything to wait for (two may end at once), it would wait for all of the time
            hung = not wait([process.sentinel for process in alive], max(0.0, limit - monotonic()))
            if any(process.exitcode for process in processes):
                break
    finally:  # also when the test is interrupted
        for process in alive:
            process.terminate()  # says where it stands, by faulthandler
            process.join(20)
            process.kill()
            process.join()
    return [None if hung and process in alive else process.exitcode for process in processes]


def _call(target: Any, arguments: Sequence[Any], streams: Sequence[Path]) -> None:
    for number, stream in enumerate(streams, 1):
        opened = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    faulthandler.register(signal.SIGTERM, chain=True)
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without


def _be_python(words: Sequence[str], changes: Mapping[str, str], cwd: Path | None) -> None:
    os.environ.update(changes)
    if cwd:
        os.chdir(cwd)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = list(words[1:])
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
