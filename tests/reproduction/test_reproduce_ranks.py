"""Experiments under a launcher: every process trains, one writes."""

from __future__ import annotations

import json
from pathlib import Path

import reproduction
from ranks import run_on_two_ranks

COMMAND = Path(reproduction.__file__).with_name("__main__.py")


def test_two_processes_train_each_arm_together_and_one_writes(tmp_path: Path) -> None:
    """Also arms that begin with, or learn from, the model of another one, which only one process saves."""
    texts = [f"the {word} house number {number}" for word in ("small", "large", "red") for number in range(80)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = ("--train-file", f"{tmp_path}/train.jsonl", "--validation-file", f"{tmp_path}/validation.jsonl")
    common = ("--studies", "lm", "--seeds", "0", "--short", "--output", f"{tmp_path}/out", *files)
    said = run_on_two_ranks(COMMAND, "figure-2", "--arms", "standard,distill-half,layerdrop-0.2", *common)
    said += run_on_two_ranks(COMMAND, "table-8", "--arms", "finetuned-half", *common)
    records = [json.loads(line) for line in (tmp_path / "out/journal.jsonl").read_text().splitlines()]
    names = [record["arm"] for record in records]
    assert sorted(names) == sorted({*names})
    assert {"standard", "distill-half", "layerdrop-0.2", "finetuned-half"} <= {*names}
    assert {record["rows"] / record["steps"] for record in records} == {2 * 8}  # a batch on each
    assert said.count("lm/standard, seed 0: perplexity") == 1
