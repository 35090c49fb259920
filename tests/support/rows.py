"""Rows, files of rows, and what Trainer needs to measure on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from transformers import TrainingArguments


def examples(count: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(5, 60, (8,), generator=generator), "labels": torch.tensor(row % 2)}
        for row in range(count)
    ]


def arguments(folder: Path, **changes: object) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **changes)


def accuracy(evaluated: object) -> dict[str, float]:
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def write_table(path: Path, rows: list[dict]) -> Path:
    """Write rows as the ending of the path asks, independently of the code under test."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            plain = {"quoting": csv.QUOTE_NONE, "delimiter": "\t", "quotechar": None} if path.suffix == ".tsv" else {}
            writer = csv.DictWriter(file, list(rows[0]), **plain)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path
