"""CPU seconds of the command line, beside those of importing torch and transformers alone.

Each command in a process of its own, all in turn in each round. Help and version have a limit, one second; other
commands are shown without one, since what is built on torch and transformers pays for their import first.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._checkpoints import bert_classifier
from benchmarks._rounds import ratio

YARDSTICK = "import torch"
TRAINER = "import transformers' Trainer"
LIMIT = 1.0


def run(rounds: int = 7, short: bool = False) -> dict[str, Any]:
    """Measure ``rounds`` times after one that warms the caches; ``short`` shows that it works, and nothing else."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    rounds = 1 if short else rounds
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        if short:
            commands = {name: commands[name] for name in (YARDSTICK, "--help", "train: a wrong rate")}
        for name, (words, code) in commands.items():
            _check(name, words, code)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds):
            names = list(commands)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                times[name].append(_cpu_seconds(commands[name][0]))
    over = {name: ratio(values, times[YARDSTICK]) for name, values in times.items() if name != YARDSTICK}
    seconds = {name: median(values) for name, values in times.items()}
    _print_table(seconds, over, rounds)
    return {
        "seconds": seconds,
        "over_import_torch": {name: value.to_dict() for name, value in over.items()},
        "slowest_seconds": max(seconds[name] for name in seconds if _is_quick(name)),
        "limit_seconds": LIMIT,
        "rounds": rounds,
        "short": short,
    }


def _is_quick(name: str) -> bool:
    """Tell the commands that have a limit."""
    return name.endswith(("--help", "--version"))


def _commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Return the words of each command, and its exit code."""
    model, out = folder / "model", folder / "out"
    bert_classifier(4, 64).save_pretrained(model)
    (model / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (model / "tokenizer_config.json").write_text("{}")
    ours = [sys.executable, "-m", "hf_layerdrop"]
    trained = [*ours, "train", "--model", str(model), "--task", "sst2", "--output_dir", str(out)]
    return {
        YARDSTICK: ([sys.executable, "-c", YARDSTICK], 0),
        TRAINER: ([sys.executable, "-c", "from transformers import Trainer"], 0),
        "--version": ([*ours, "--version"], 0),
        "--help": ([*ours, "--help"], 0),
        **{f"{name} --help": ([*ours, name, "--help"], 0) for name in ("train", "search", "distill")},
        "train --help-all": ([*ours, "train", "--help-all"], 0),
        "inspect FOLDER": ([*ours, "inspect", str(model)], 0),
        "prune: a depth too large": ([*ours, "prune", str(model), "--keep-layers", "9", "--output", str(out)], 2),
        "sweep: an unknown task": ([*ours, "sweep", str(model), "--task", "sst3", "--output", str(out)], 2),
        "train: an unknown flag": ([*trained, "--learning_rat", "1"], 2),
        "train: a wrong rate": ([*trained, "--layerdrop", "1.5"], 2),
    }


def _check(name: str, words: list[str], code: int) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != code:
        raise AssertionError(f"{name} ended with {done.returncode}, not {code}: {done.stderr}")


def _cpu_seconds(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _print_table(seconds: dict[str, float], over: dict[str, Any], rounds: int) -> None:
    print(f"CPU seconds, median of {rounds} rounds.\n")
    print("| command | CPU seconds | limit | over `import torch` |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        limit = f"{LIMIT:g}" if _is_quick(name) else ""
        print(f"| {name} | {value:.2f} | {limit} | {over.get(name, 1)} |")
