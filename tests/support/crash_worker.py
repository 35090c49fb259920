"""What the processes of test_crash do: a short training run, which may kill itself at a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate  # noqa: F401 - here and below: imported once, by the process that the others are forked from
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, Trainer, TrainerState, TrainingArguments

from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.embedded import embedded_sst2
from hf_layerdrop.tasks.registry import TASKS
from hf_layerdrop.training.train import train

STEPS, SAVE_STEPS = 10, 3


@dataclass(frozen=True)
class Death:
    """When a process kills itself.

    Attributes:
        calls: After so many calls of any function since training began; 0 for never.
        inside: While it writes a file whose path ends like this, ...
        share: ... of which this share has been written.
        rank: The process that dies.
    """

    calls: int = 0
    inside: str = ""
    share: float = 0.5
    rank: int = 0


def prepare(folder: Path) -> None:
    """Write a tiny pretrained model, and the rows that it is trained on."""
    sentences = embedded_sst2()["train"]["sentence"][:48]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words) + 5,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,  # and its usual dropout of 0.1, so that the random states of a checkpoint matter
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(sentences)]
    (folder / "rows.tsv").write_text("\n".join(["sentence\tlabel", *rows]))


def run(model: Path, output: Path, death: Death, environment: dict[str, str], counted: Any = None) -> None:
    """Train, or go on training, into ``output``; ``counted`` gets the number of calls that it took."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        str(output),
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        logging_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        resume_from_checkpoint="auto",
    )
    data = load_task_data(TASKS["sst2"], train_file=model / "rows.tsv", validation_file=model / "rows.tsv")
    layerdrop = LayerDropConfig(0.5, seed=3)
    calls = Calls(death.calls)

    def on_start(trainer: Trainer, encoded: object) -> None:
        if death.inside and death.rank == int(os.environ.get("RANK", "0")):
            die_inside(death)
        if death.calls or counted is not None:
            sys.setprofile(calls)

    train(data, str(model), arguments, layerdrop=layerdrop, eval_depths=[4, 2], overwrite=True, on_start=on_start)
    sys.setprofile(None)
    if counted is not None:
        counted.value = calls.number


class Calls:
    """Count calls, and end the process at one of them."""

    def __init__(self, last: int) -> None:
        self.number, self.last = 0, last

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        self.number += 1
        if self.number == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def die_inside(death: Death) -> None:
    """Leave a file half written, as a process does that is killed while it writes."""

    def cut(write: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = write(*args, **kwargs)
            path = str(path_of(*args))
            if path.endswith(death.inside):
                os.truncate(path, int(os.path.getsize(path) * death.share))
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    torch.save = cut(torch.save, lambda tensors, path: path)
    TrainerState.save_to_json = cut(TrainerState.save_to_json, lambda state, path: path)
