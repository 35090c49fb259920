"""Finetune a model with LayerDrop on a GLUE task, in the style of transformers' own examples, and cut it.

    python examples/run_glue.py --model_name_or_path bert-base-uncased --task_name sst2 --layerdrop 0.2 \
        --output_dir out/sst2 --num_train_epochs 3 --eval_strategy epoch --learning_rate 2e-5

What differs from a script without LayerDrop is marked. Rows of your own come as CSV or JSON files with a column
``label`` and one or two columns of text: ``--train_file train.csv --validation_file dev.csv --text_columns sentence``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import evaluate
import numpy as np
from datasets import DatasetDict, load_dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    DepthEvaluationCallback,
    LayerDropScheduleCallback,
    evaluate_depths,
    save_pruned,
)

TEXT_COLUMNS = {
    "cola": ["sentence"],
    "mnli": ["premise", "hypothesis"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "rte": ["sentence1", "sentence2"],
    "sst2": ["sentence"],
    "wnli": ["sentence1", "sentence2"],
}


@dataclass
class ModelArguments:
    """Which model, and what of it is dropped and kept."""

    model_name_or_path: str = field(metadata={"help": "A folder or a Hub id."})
    layerdrop: float = field(default=0.2, metadata={"help": "How often a layer is skipped while training."})
    warm_up: float = field(default=0.0, metadata={"help": "Share of the training in which the rate rises from 0."})
    depths: list[int] = field(default_factory=lambda: [6, 3], metadata={"help": "Sub-networks that are measured."})
    keep_layers: str | None = field(default=None, metadata={"help": "What is saved as a model of its own, such as 6."})


@dataclass
class DataArguments:
    """Which rows."""

    task_name: str | None = field(default=None, metadata={"help": f"One of {', '.join(TEXT_COLUMNS)}."})
    train_file: str | None = field(default=None, metadata={"help": "CSV or JSON, in place of a task."})
    validation_file: str | None = field(default=None, metadata={"help": "The same."})
    text_columns: list[str] = field(default_factory=lambda: ["sentence"], metadata={"help": "One or two."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})


def load_rows(arguments: DataArguments) -> tuple[DatasetDict, list[str], str]:
    """Return the rows, their text columns, and the name of the validation split."""
    if arguments.task_name is not None:
        split = "validation_matched" if arguments.task_name == "mnli" else "validation"
        return load_dataset("nyu-mll/glue", arguments.task_name), TEXT_COLUMNS[arguments.task_name], split
    files = {"train": arguments.train_file, "validation": arguments.validation_file}
    kind = "csv" if str(arguments.train_file).endswith(".csv") else "json"
    return load_dataset(kind, data_files=files), arguments.text_columns, "validation"


def main() -> None:
    """Train, measure the depths, and save what is kept."""
    # A type checker would have instances here; the parser wants the classes.
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))  # type: ignore[arg-type]
    model_arguments, data_arguments, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)

    rows, text_columns, split = load_rows(data_arguments)
    tokenizer = AutoTokenizer.from_pretrained(model_arguments.model_name_or_path)
    rows = rows.map(
        lambda batch: tokenizer(
            *(batch[column] for column in text_columns), truncation=True, max_length=data_arguments.max_seq_length
        ),
        batched=True,
    )
    labels = len(set(rows["train"]["label"]))

    # LayerDrop: the class and its rate.
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        model_arguments.model_name_or_path, layerdrop=model_arguments.layerdrop, num_labels=labels
    )

    metric = evaluate.load("glue", data_arguments.task_name) if data_arguments.task_name else None

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        classes = np.argmax(logits, axis=1)
        if metric is not None:
            return dict(metric.compute(predictions=classes, references=prediction.label_ids))
        return {"accuracy": float(np.mean(classes == prediction.label_ids))}

    # LayerDrop: each evaluation at these depths too, and the rate over time.
    callbacks: list[TrainerCallback] = [DepthEvaluationCallback(model_arguments.depths)]
    if model_arguments.warm_up:
        callbacks.append(LayerDropScheduleCallback("linear", end=model_arguments.warm_up))

    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=rows["train"],
        eval_dataset=rows[split],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model()

    # LayerDrop: how good is it at each depth? Then keep one.
    results = evaluate_depths(trainer, depths=["all", *model_arguments.depths])
    for result in results:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        print(f"{result.depth} layers {dict(result.keep_layers)}: {metrics}")
    if model_arguments.keep_layers is not None:
        kept = save_pruned(
            training.output_dir, f"{training.output_dir}-cut", keep_layers=model_arguments.keep_layers, results=results
        )
        print(f"saved {kept}, a plain checkpoint")


if __name__ == "__main__":
    main()
