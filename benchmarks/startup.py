"""CPU seconds of commands that need no model in memory, beside those of importing torch alone.

Help, facts of a checkpoint and errors that arguments, config and weight headers decide: each command in a process of
its own, all in turn in each round. The limit is one second; what everything built on torch pays first is the yardstick.
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
LIMIT = 1.0


def run(rounds: int = 7, short: bool = False) -> dict[str, Any]:
    """Measure ``rounds`` times after one that warms the caches; ``short`` shows that it works, and nothing else."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    rounds = 1 if short else rounds
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        if short:
            commands = {name: commands[name] for name in (YARDSTICK, "--help", "train: a wrong seed")}
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
        "slowest_seconds": max(seconds[name] for name in over),
        "limit_seconds": LIMIT,
        "rounds": rounds,
        "short": short,
    }


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
        "--help": ([*ours, "--help"], 0),
        "train --help": ([*ours, "train", "--help"], 0),
        "inspect FOLDER": ([*ours, "inspect", str(model)], 0),
        "prune: a depth too large": ([*ours, "prune", str(model), "--keep-layers", "9", "--output", str(out)], 2),
        "sweep: an unknown task": ([*ours, "sweep", str(model), "--task", "sst3", "--output", str(out)], 2),
        "train: an unknown flag": ([*trained, "--learning_rat", "1"], 2),
        "train: a wrong rate": ([*trained, "--layerdrop", "1.5"], 2),
        "train: a wrong seed": ([*trained, "--seed", "-1"], 2),
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
    print(f"CPU seconds, median of {rounds} rounds; the limit is {LIMIT:g}.\n")
    print("| command | CPU seconds | over `import torch` |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {over.get(name, 1)} |")
