"""Models that are trained in minutes of one core: all-MiniLM-L6 on SST-2, and a small Llama on text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

    from hf_layerdrop.tasks.task import TaskData

LINES, VALIDATION_LINES = 6000, 400  # of WikiText-2: 1.9 million tokens, of which 3,000 steps read 1.5


@dataclass(frozen=True)
class Subject:
    """A model of six layers and how it is trained.

    Attributes:
        metric: What it is measured by.
        steps: Steps of a training.
        max_length: Tokens of an input.
        data: Load its rows, from a folder where one is given.
        start: Build the model for them, whole or of so many layers, and its tokenizer.
        training: Its fields of TrainingArguments.
    """

    metric: str
    steps: int
    max_length: int
    data: Callable[[str], TaskData]
    start: Callable[[TaskData, int | None], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    training: dict[str, Any] = field(default_factory=dict)


def training_arguments(folder: str | Path, steps: int, seed: int, **fields: Any) -> TrainingArguments:
    """Return Trainer's settings for a run that says and saves nothing on its way."""
    import torch
    from transformers import TrainingArguments

    usual = {"per_device_eval_batch_size": 64, "warmup_steps": 0.1, "weight_decay": 0.01}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        seed=seed,
        use_cpu=not torch.accelerator.is_available(),
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **{**usual, **fields},
    )


def train(
    subject: Subject, data: TaskData, folder: Path, steps: int, seed: int, keep_layers: int | None = None
) -> Trainer:
    """Train a subject, whole or of so many layers from the first step on, and save it in a folder."""
    from transformers import set_seed

    from hf_layerdrop.tasks.task import tokenize
    from hf_layerdrop.training.trainers import build_trainer

    set_seed(seed)
    model, tokenizer = subject.start(data, keep_layers)
    encoded = tokenize(data, tokenizer, max_length=subject.max_length)
    trainer = build_trainer(encoded, model, tokenizer, training_arguments(folder, steps, seed, **subject.training))
    trainer.train()
    trainer.save_model()
    return trainer


def shortened(data: TaskData, rows: int = 64) -> TaskData:
    """Keep the first rows of all sets."""
    validation = {name: kept.select(range(rows)) for name, kept in data.validation.items()}
    return replace(data, train=data.train and data.train.select(range(rows)), validation=validation)


def _sst2(folder: str) -> TaskData:
    from hf_layerdrop.cli.demo_run import demo_data

    if folder:
        raise SystemExit("--data is for the language model; MiniLM has the sample of SST-2 that the package has.")
    return demo_data()


def _minilm(data: TaskData, keep_layers: int | None) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from hf_layerdrop import AutoLayerDropModelForSequenceClassification
    from hf_layerdrop.cli.demo_run import demo_checkpoint

    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        demo_checkpoint(), num_labels=2, layerdrop=0.0, keep_layers=keep_layers
    )
    return model, AutoTokenizer.from_pretrained(demo_checkpoint())


def _text(folder: str) -> TaskData:
    """Read train.parquet and validation.parquet of a folder; without one, take the sentences of SST-2 as text."""
    from hf_layerdrop.tasks.data import load_task_data
    from hf_layerdrop.tasks.embedded import embedded_sst2
    from hf_layerdrop.tasks.registry import load_task
    from hf_layerdrop.tasks.task import TaskData

    task = load_task("clm")
    if folder:
        files = [Path(folder) / f"{split}.parquet" for split in ("train", "validation")]
        data = load_task_data(task, train_file=files[0], validation_file=files[1])
    else:
        splits = {name: rows.select_columns("sentence") for name, rows in embedded_sst2().items()}
        train, validation = (splits[name].rename_column("sentence", "text") for name in ("train", "validation"))
        data = TaskData(task, train, {"validation": validation})
    train, validation = data.train, data.validation["validation"]
    assert train is not None
    return replace(
        data,
        train=train.select(range(min(LINES, len(train)))),
        validation={"validation": validation.select(range(min(VALIDATION_LINES, len(validation))))},
    )


def _llama(data: TaskData, keep_layers: int | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from hf_layerdrop.tasks.columns import all_texts
    from hf_layerdrop.training.from_config import describe_model

    assert data.train is not None
    model = describe_model(f"llama-{keep_layers or 6}x96", "CausalLM", positions=64, vocab_size=300)
    tokenizer = model.make_tokenizer(all_texts(data.train))
    more = {"initializer_range": 0.08, "intermediate_size": 256, "tie_word_embeddings": True}
    return AutoModelForCausalLM.from_config(model.make_config(tokenizer, **more)), tokenizer


_TEXT_TRAINING = {
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.98,
}
SUBJECTS = {
    "minilm": Subject(
        "accuracy",
        300,
        64,
        _sst2,
        _minilm,
        {"per_device_train_batch_size": 32, "learning_rate": 1e-4, "train_sampling_strategy": "group_by_length"},
    ),
    "lm": Subject("perplexity", 3000, 64, _text, _llama, _TEXT_TRAINING),
}
