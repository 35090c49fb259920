"""What a Trainer's sub-networks score is what ``Trainer.evaluate`` gives of the cut model, to the last digit."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from conftest import DEPTH, batch_for, build, keep_all_stacks
from evaluation_models import SIZES, network
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation import batches
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.training.callbacks import DepthEvaluationCallback
from rows import accuracy, arguments, examples

HEADS = [
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
]
KEPT = ([1, 3], [0, 1, 3], [0, 1])
CLASSES = "BertForSequenceClassification"


def rows_for(head: str, count: int = 7) -> list[dict[str, torch.Tensor]]:
    """Return rows of which the last batch is not full, so that the mean of batches is another than that of rows."""
    if "Sequence" in head:
        return examples(count)
    found = []
    for seed in range(count):
        row = {name: value[0] for name, value in batch_for("BertModel" if head in SIZES else head, seed).items()}
        row["labels"] = row["input_ids"].clone()
        if "T5" in head:
            row["decoder_input_ids"] = row["input_ids"].clone()  # which smoothing of labels takes from nowhere else
        found.append(row)
    return found


def mean_of_predictions(evaluated: Any, compute_result: bool = True) -> dict[str, Any]:
    """A metric that changes with anything that Trainer hands over, in whichever form."""
    logits = evaluated.predictions
    parts = logits if isinstance(logits, list) else [logits]
    parts = [part[0] if isinstance(part, tuple) else part for part in parts]
    found = {"mean": float(np.mean([float(np.abs(np.asarray(part, dtype=np.float64)).mean()) for part in parts]))}
    found["pieces"] = len(parts)
    for name in ("inputs", "losses"):
        if getattr(evaluated, name, None) is not None:
            found[name] = float(sum(np.asarray(part, dtype=np.float64).sum() for part in getattr(evaluated, name)))
    return found


class Batchwise:
    """A metric that is fed batch by batch, and gives its numbers with the last."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, evaluated: Any, compute_result: bool) -> dict[str, float]:
        self.seen.append(float(evaluated.predictions.double().mean()))
        if not compute_result:
            return {}
        seen, self.seen = self.seen, []
        return {"mean": float(np.mean(seen)), "batches": float(len(seen))}


def numbers(metrics: dict[str, Any], prefix: str = "eval_") -> dict[str, float]:
    """Return what an evaluation says of the model."""
    own = ("runtime", "per_second", "preparation_time", "epoch", "mem_cpu", "_delta")
    return {name.removeprefix(prefix): value for name, value in metrics.items() if not name.endswith(own)}


def check_equal(make: Callable[[Any], Trainer], model: Any) -> None:
    """Compare every sub-network with ``Trainer.evaluate`` of a copy that is cut to it."""
    kept = [keep_all_stacks(model, layers) for layers in KEPT]
    before = copy.deepcopy(model.state_dict())
    trainer = make(model)
    found = evaluate_depths(trainer, depths=[None, *kept], progress=False)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    for layers, result in zip([None, *kept], found, strict=True):
        cut = copy.deepcopy(model)
        if layers is not None:
            prune_layers(cut, layers)
        assert dict(result.metrics) == numbers(make(cut).evaluate())
    assert len({result.metrics["loss"] for result in found}) == len(found)
    assert trainer.state.log_history == []


SETTINGS = {
    "default": {},
    "eval_accumulation_steps": {"eval_accumulation_steps": 1},
    "bf16_full_eval": {"bf16_full_eval": True},
    "bf16": {"bf16": True},
    "lists of batches": {"eval_do_concat_batches": False},
    "inputs and losses": {"include_for_metrics": ["inputs", "loss"]},
    "loss alone": {"prediction_loss_only": True},
    "one row": {"per_device_eval_batch_size": 1},
    "drop_last": {"dataloader_drop_last": True},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "use_cache": {"use_cache": True},
    "memory metrics": {"skip_memory_metrics": False},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
}


@pytest.mark.cases(26)
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("head", HEADS)
def test_sub_networks_score_what_trainer_says_of_the_cut_model(
    head: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"per_device_eval_batch_size": 3, **changes}

    def make(model: Any) -> Trainer:
        made = Trainer(
            model, arguments(tmp_path, **settings), eval_dataset=rows_for(head), compute_metrics=mean_of_predictions
        )
        made.remove_callback(PrinterCallback)
        return made

    check_equal(make, network(head))


def test_a_metric_that_is_fed_batch_by_batch_sees_one_sub_network_after_the_other(tmp_path: Path) -> None:
    def make(model: Any) -> Trainer:
        settings = arguments(tmp_path, per_device_eval_batch_size=3, batch_eval_metrics=True)
        return Trainer(model, settings, eval_dataset=rows_for(CLASSES), compute_metrics=Batchwise())

    check_equal(make, build(CLASSES))


def test_logits_are_preprocessed_before_they_are_kept(tmp_path: Path) -> None:
    def make(model: Any) -> Trainer:
        return Trainer(
            model,
            arguments(tmp_path, per_device_eval_batch_size=3),
            eval_dataset=rows_for("GPT2LMHeadModel"),
            compute_metrics=mean_of_predictions,
            preprocess_logits_for_metrics=lambda logits, labels: (logits.argmax(-1) == labels).float(),
        )

    check_equal(make, network("GPT2LMHeadModel"))


@pytest.mark.parametrize("generates", [True, False])
def test_a_trainer_that_generates_gathers_as_it_does_alone(generates: bool, tmp_path: Path) -> None:
    head = "BartForConditionalGeneration"
    settings = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        predict_with_generate=generates,
        generation_max_length=9,
        generation_num_beams=2,
        per_device_eval_batch_size=3,
    )

    def make(model: Any) -> Trainer:
        return Seq2SeqTrainer(model, settings, eval_dataset=rows_for(head), compute_metrics=mean_of_predictions)

    check_equal(make, network(head))


class PostProcessing(Trainer):
    """The trainer of transformers' run_qa example, in short: its metric is computed after the loop."""

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.get_eval_dataloader(eval_dataset)
        eval_examples = "stored" if eval_examples is None else eval_examples
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            output = self.evaluation_loop(
                loader, "Evaluation", prediction_loss_only=False, metric_key_prefix=metric_key_prefix
            )
        finally:
            self.compute_metrics = compute_metrics
        metrics = {
            f"{metric_key_prefix}_examples": float(len(eval_examples)),
            f"{metric_key_prefix}_mean": float(output.predictions.mean()),
            **output.metrics,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Collecting(Trainer):
    """A trainer that collects numbers in its prediction steps and writes them with the next record, as TRL's do."""

    collected: list[float]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        outputs = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self.collected = [*getattr(self, "collected", []), float(outputs[0])]
        return outputs

    def log(self, logs, start_time=None):
        if getattr(self, "collected", []):
            logs["eval_collected"] = sum(self.collected) / len(self.collected)
        super().log(logs, start_time)
        self.collected = []


@pytest.mark.parametrize("cls", [PostProcessing, Collecting])
def test_a_trainer_with_an_evaluation_of_its_own_is_asked_for_each_sub_network(
    cls: type[Trainer], tmp_path: Path
) -> None:
    def make(model: Any) -> Trainer:
        return cls(
            model,
            arguments(tmp_path, per_device_eval_batch_size=3),
            eval_dataset=rows_for(CLASSES),
            compute_metrics=mean_of_predictions,
        )

    check_equal(make, build(CLASSES))


def training(
    model: Any, folder: Path, *callbacks: TrainerCallback, cls: type[Trainer] = Trainer, **changes: Any
) -> Any:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
    }
    given = {"train_dataset": examples(), "eval_dataset": examples(7), "compute_metrics": accuracy}
    given |= {name: changes.pop(name) for name in list(changes) if name in (*given, "data_collator", "optimizers")}
    made = cls(model, arguments(folder, **{**settings, **changes}), callbacks=list(callbacks), **given)
    made.remove_callback(PrinterCallback)
    return made


def test_a_trainer_with_its_own_evaluate_trains_with_the_callback(tmp_path: Path) -> None:
    trainer = training(build(CLASSES), tmp_path, DepthEvaluationCallback([DEPTH, 2]), cls=PostProcessing)
    trainer.train()
    metrics = trainer.evaluate(examples(5), eval_examples="given!", metric_key_prefix="test")
    assert metrics["test_depth_4_mean"] == metrics["test_mean"] != metrics["test_depth_2_mean"]
    assert metrics["test_depth_4_loss"] == metrics["test_loss"]
    assert metrics["test_depth_2_examples"] == 6
    assert sum("eval_depth_2_mean" in entry for entry in trainer.state.log_history) == 2


def test_what_a_trainer_collects_stays_with_the_network_that_gave_it(tmp_path: Path) -> None:
    trainer = training(build(CLASSES), tmp_path, DepthEvaluationCallback([DEPTH, 2]), cls=Collecting)
    trainer.train()
    records = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert records == [entry for entry in trainer.state.log_history if "eval_depth_2_loss" in entry]
    assert len(records) == 2
    for record in records:
        assert record["eval_depth_4_collected"] == record["eval_collected"] != record["eval_depth_2_collected"]


@pytest.mark.parametrize("cls", [Trainer, Collecting])
def test_metrics_that_are_no_numbers_are_left_out_with_a_word(cls: type[Trainer], tmp_path: Path) -> None:
    def by_class(evaluated: Any) -> dict[str, Any]:
        return {
            **accuracy(evaluated),
            "matrix": [[1, 2], [3, 4]],
            "by_class": {"a": 0.5},
            "name": "x",
            "np": np.float32(1),
        }

    trainer = training(
        build(CLASSES), tmp_path, DepthEvaluationCallback([2]), cls=cls, compute_metrics=by_class, max_steps=2
    )
    with pytest.warns(UserWarning, match="matrix, by_class, name"):
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "eval_depth_2_loss" in entry)
    assert {"eval_depth_2_accuracy", "eval_depth_2_loss", "eval_depth_2_np"} <= set(logged)
    assert "eval_depth_2_matrix" not in logged


def test_a_set_without_labels_among_others_gives_what_trainer_gives(tmp_path: Path) -> None:
    bare = [{"input_ids": row["input_ids"]} for row in examples(5)]
    sets = {"with": examples(7), "without": bare}
    trainer = training(build(CLASSES), tmp_path, DepthEvaluationCallback([DEPTH, 2]), eval_dataset=sets)
    trainer.train()
    assert trainer.state.global_step == 4
    metrics = trainer.evaluate()
    assert metrics["eval_with_depth_4_loss"] == metrics["eval_with_loss"]
    assert not any("without_depth" in name and name.endswith("loss") for name in metrics)
    whole = evaluate_depths(trainer, depths=[DEPTH], progress=False)[0].metrics
    assert dict(whole) == {"with_accuracy": metrics["eval_with_accuracy"], "with_loss": metrics["eval_with_loss"]}
    with pytest.raises(TaskError, match="labels"):
        evaluate_depths(trainer, bare, depths=[2], metric="accuracy", progress=False)


class OwnLoader(Trainer):
    """A trainer that knows its evaluation data by itself."""

    reads = 0

    def get_eval_dataloader(self, eval_dataset=None):
        type(self).reads += 1
        return self.accelerator.prepare(DataLoader(examples(7), batch_size=3))


def test_a_loader_of_ones_own_needs_no_data_set(tmp_path: Path) -> None:
    trainer = training(
        build(CLASSES),
        tmp_path,
        DepthEvaluationCallback([DEPTH, 2]),
        cls=OwnLoader,
        eval_dataset=None,
        eval_strategy="no",
    )
    metrics = trainer.evaluate()
    assert metrics["eval_depth_4_loss"] == metrics["eval_loss"] != metrics["eval_depth_2_loss"]
    before = OwnLoader.reads
    found = evaluate_depths(trainer, depths=[DEPTH, 2, [1, 2]], progress=False)
    assert OwnLoader.reads == before + 1
    assert found[0].metrics["loss"] == metrics["eval_loss"]
    with pytest.raises(TaskError, match="no eval_dataset"):
        evaluate_depths(training(build(CLASSES), tmp_path, eval_dataset=None, eval_strategy="no"), depths=[2])


class Counting(torch.utils.data.IterableDataset):
    """Rows that are others at each reading, from a generator of their own."""

    def __init__(self) -> None:
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        yield from random.Random(self.readings).sample(examples(30), 7)


def test_the_data_is_read_once_for_all_sub_networks(tmp_path: Path) -> None:
    data = Counting()
    trainer = training(build(CLASSES), tmp_path, eval_dataset=data, eval_strategy="no")
    found = evaluate_depths(trainer, depths=[DEPTH, 2, [0, 1, 2, 3]], progress=False)
    assert data.readings == 1
    assert found[0].metrics == found[2].metrics
    trainer.add_callback(DepthEvaluationCallback([DEPTH, 2]))
    metrics = trainer.evaluate()
    assert data.readings == 2
    assert metrics["eval_depth_4_loss"] == metrics["eval_loss"]


class Drawn(torch.utils.data.Sampler):
    """An order of rows that is drawn from the global generator at each reading."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self):
        return iter(torch.randperm(len(self.data)).tolist())

    def __len__(self) -> int:
        return len(self.data)


class Shuffling(Trainer):
    """A trainer whose evaluation data comes in another order each time, and with an evaluation of its own."""

    def _get_eval_sampler(self, eval_dataset):
        return Drawn(eval_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + outputs["logits"].mean(0).square().sum()  # it depends on who is in the batch
        return (loss, outputs) if return_outputs else loss


class ShufflingInTurn(Shuffling):
    def log(self, logs, start_time=None):
        super().log(logs, start_time)


@pytest.mark.parametrize("cls", [Shuffling, ShufflingInTurn])
def test_a_loader_that_draws_its_order_gives_all_the_same_batches(cls: type[Trainer], tmp_path: Path) -> None:
    model = build(CLASSES)
    trainer = training(model, tmp_path, DepthEvaluationCallback([DEPTH, 2]), cls=cls)
    torch.manual_seed(3)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] != second["eval_loss"]
    for metrics in (first, second):
        assert metrics["eval_depth_4_loss"] == metrics["eval_loss"] != metrics["eval_depth_2_loss"]
    whole, _, again = evaluate_depths(trainer, depths=[DEPTH, 2, list(range(DEPTH))], progress=False)
    assert (
        whole.metrics
        == again.metrics
        == {name: value for name, value in numbers(trainer.evaluate()).items() if "depth" not in name}
    )


def test_masks_that_a_collator_draws_are_those_of_the_whole_model(tmp_path: Path, monkeypatch: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(50)} | {"[MASK]": 50, "[PAD]": 51}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", pad_token="[PAD]")
    rows = [{"input_ids": row["input_ids"] % 50} for row in examples(7)]
    trainer = training(
        build("BertForMaskedLM"),
        tmp_path,
        DepthEvaluationCallback([DEPTH, 2]),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4),
    )
    metrics = trainer.evaluate()
    assert metrics["eval_depth_4_loss"] == metrics["eval_loss"] != metrics["eval_depth_2_loss"]
    monkeypatch.setattr(batches, "MOST_BYTES_KEPT", 10)
    with pytest.warns(UserWarning, match="second reading"):
        metrics = trainer.evaluate()
    assert metrics["eval_depth_4_loss"] != metrics["eval_depth_2_loss"]


@pytest.mark.parametrize("cls", [Trainer, Shuffling, ShufflingInTurn, PostProcessing])
def test_a_training_ends_with_the_weights_that_it_has_without_the_callback(cls: type[Trainer], tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [DepthEvaluationCallback([DEPTH, 2, [1]])]):
        model = build(CLASSES, hidden_dropout_prob=0.3)
        inject_layerdrop(model, 0.3)
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        training(model, tmp_path, *callbacks, cls=cls, max_steps=6).train()
        ends.append((copy.deepcopy(model.state_dict()), torch.rand(1), np.random.rand(), random.random()))
    (weights, *draws), (others, *other_draws) = ends
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    assert draws == other_draws


@pytest.mark.parametrize("cls", [Trainer, Shuffling, Collecting])
def test_no_random_stream_is_moved(cls: type[Trainer], tmp_path: Path) -> None:
    own = torch.Generator().manual_seed(5)

    class Own(cls):
        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(examples(7), batch_size=3, shuffle=True, generator=own)

    trainer = training(build(CLASSES), tmp_path, cls=Own)
    before = torch.get_rng_state(), own.get_state(), random.getstate(), np.random.get_state()[1].tolist()
    evaluate_depths(trainer, depths=[2, 3], progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(own.get_state(), before[1])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[2:]


class Averaging(torch.optim.SGD):
    """Weights of its own while it trains, and others to evaluate, as schedule-free optimizers have."""

    training = True

    def train(self) -> None:
        self._go(training=True)

    def eval(self) -> None:
        self._go(training=False)

    def _go(self, *, training: bool) -> None:
        if training != self.training:
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data.mul_(2.0 if training else 0.5)
            self.training = training


def test_an_optimizer_with_averaged_weights_is_asked_for_them(tmp_path: Path) -> None:
    model = build(CLASSES)
    trainer = training(model, tmp_path, optimizers=(Averaging(model.parameters(), lr=0.01), None))
    trainer.train()
    trainer.optimizer.train()
    found = evaluate_depths(trainer, depths=[DEPTH], progress=False)[0]
    assert dict(found.metrics) == numbers(trainer.evaluate())
    trainer.optimizer.train()
    assert trainer.evaluate()["eval_loss"] == found.metrics["loss"]


def test_the_modes_of_modules_come_back_and_nobody_hears_of_it(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listening(TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            heard.append("log")

        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            heard.append("evaluate")

        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            heard.append("step")

    for cls in (Trainer, Collecting):
        model = build(CLASSES).train()
        model.bert.embeddings.eval()
        modes = [module.training for module in model.modules()]
        trainer = training(model, tmp_path, Listening(), cls=cls)
        trainer.control.should_save = True
        evaluate_depths(trainer, depths=[2, 3], progress=False)
        assert heard == []
        assert [module.training for module in model.modules()] == modes
        assert trainer.control.should_save
        assert trainer.state.log_history == []
