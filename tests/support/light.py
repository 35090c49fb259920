"""Help and version, which have to come without torch, each in a process of its own.

A server that has imported the command line is started once by each process of pytest, and forked for each command: to
import that takes most of the time of one. What the server itself has imported counts, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# What takes a good part of a second to import. How long a command takes is measured by `python -m benchmarks startup`.
HEAVY = {"accelerate", "datasets", "evaluate", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn"}
HEAVY |= {"tokenizers", "torch", "transformers"}
TOO_HEAVY = 99  # the exit code of a command that imported anything of it


def run_lightly(*arguments: object) -> tuple[int, str, str]:
    """Run a command in a process of its own; return its exit code and what it wrote.

    The code is `TOO_HEAVY` if it imported anything heavy.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        request = {"words": [str(word) for word in arguments], "folder": folder, "cwd": os.getcwd()}
        server.stdin.write(json.dumps({**request, "environment": dict(os.environ)}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return code, out, err


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).resolve())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # ends with its stdin


def serve() -> None:
    """Fork for each request on stdin, and answer with the exit code."""
    import hf_layerdrop.cli  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_command(request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _be_command(request: dict[str, object]) -> None:
    from hf_layerdrop.cli import run

    folder, words = str(request["folder"]), request["words"]
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            opened = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
            os.dup2(opened, number)
        code = run(words)  # type: ignore[arg-type]
        heavy = HEAVY & set(sys.modules)
        sys.stderr.write(" ".join(heavy))
        code = TOO_HEAVY if heavy else code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
