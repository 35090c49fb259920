"""Train one arm, resumable at any step, and measure it at every cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import accelerator
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.evaluation.trainer_loop import replaced
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers
from hf_layerdrop.search.average_without_layer import average_without_layer
from hf_layerdrop.training.callbacks import LayerForwardsCallback
from hf_layerdrop.training.train import continue_training, last_complete_checkpoint, measure_depths
from hf_layerdrop.training.trainers import generation_flags
from reproduction.clock import StepClock
from reproduction.models import TRAINED_TOGETHER, model_of, trainer_of
from reproduction.plan import Run
from reproduction.row_scores import KeepsRows
from reproduction.shared_inputs import SharedInputs
from reproduction.study import WHOLE

MODEL = "model"  # the folder of the trained model, in that of the run
IMPORTANCE_SEED = 0  # the sets of layers that are scored are the same for every model


def train_run(run: Run, shared: SharedInputs, folder: Path, source: Path | None) -> dict[str, Any]:
    """Train a run, from its last checkpoint if it has one, and return what the journal keeps of it.

    Args:
        run: What to train.
        shared: Its data.
        folder: Where its checkpoints and then its model go.
        source: The folder of the model that it begins with or learns from.
    """
    arguments = _arguments(run, shared, folder)
    model = model_of(run, shared, source)
    clock = StepClock()
    count = (
        None if run.arm.start in ("distill", TRAINED_TOGETHER) else LayerForwardsCallback()
    )  # these count themselves
    callbacks = [clock, *([] if count is None else [count])]
    trainer = trainer_of(run, shared, arguments, model, source, callbacks)
    continue_training(trainer, folder, last_complete_checkpoint(folder))
    forwards = _layer_forwards(trainer, count)
    if run.keeps_model:
        trainer.save_model(str(folder / MODEL))
    rows_a_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    rows = trainer.state.global_step * rows_a_step
    record = {
        "steps": trainer.state.global_step,
        "rows": rows,
        "seconds": round(clock.seconds, 2),
        "cpu_seconds": round(clock.cpu_seconds, 2),
        "rows_per_second": round(rows / max(clock.cpu_seconds, 1e-9), 3),
        **forwards,
        "cuts": _measure(run, trainer, shared),
        "signatures": dict(getattr(trainer.compute_metrics, "signatures", {})),
    }
    if run.arm.importance and run.size.importance:
        record["importance"] = _importance(run, trainer)
    return record


def _arguments(run: Run, shared: SharedInputs, folder: Path) -> TrainingArguments:
    size, task = run.size, shared.data.task
    settings = {
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_total_limit": 1,
        "report_to": "none",
        "logging_steps": 100,
        "disable_tqdm": True,
        "dataloader_pin_memory": accelerator.is_available(),
        "use_cpu": not accelerator.is_available(),  # else Trainer does not see the other processes of a launch
        **run.training,
        **({"label_smoothing_factor": 0.0} if run.arm.start == "distill" else {}),  # soft targets take its place
        "seed": run.seed,
        "output_dir": str(folder),
    }
    if run.steps < settings.get("save_steps", 500):
        settings["save_steps"] = run.steps
    kind = Seq2SeqTrainingArguments if task.generation else TrainingArguments
    return kind(**settings, **generation_flags(task, size.max_target_length, size.num_beams))


def _layer_forwards(trainer: Any, count: LayerForwardsCallback | None) -> dict[str, int]:
    if count is not None:
        return {"layer_forwards": count.layer_forwards}
    forwards = trainer.layer_forwards
    return {"layer_forwards": forwards.total, "teacher_layer_forwards": forwards.teacher}


def _measure(run: Run, trainer: Trainer, shared: SharedInputs) -> dict[str, Any]:
    """Measure the whole model and its cuts; a model that was trained small has only the cut that it is."""
    trainer.args.train_sampling_strategy = "sequential"  # else Trainer measures in groups of about the same length
    depths = depths_of(trainer.model)
    cuts = run.size.cuts if run.arm.cut == WHOLE else {run.arm.cut: "all"}
    rows = KeepsRows(trainer.compute_metrics, run.study.metric, shared.data, shared.tokenizer)
    with replaced(trainer, compute_metrics=rows):  # one cut at a time, so that it is known whose rows these are
        return {name: _cut(trainer, shared, parse_keep_layers(spec, depths), rows) for name, spec in cuts.items()}


def _cut(trainer: Trainer, shared: SharedInputs, kept: KeepLayers, rows: KeepsRows) -> dict[str, Any]:
    rows.last = None
    (result,) = measure_depths(trainer, shared.data, [kept])
    return {**_plain(result), **({} if rows.last is None else {"row_scores": rows.last.pack()})}


def _plain(result: SubNetworkResult) -> dict[str, Any]:
    values = result.to_dict()
    return {name: values[name] for name in ("keep_layers", "parameters", "metrics")}


def _importance(run: Run, trainer: Trainer) -> Mapping[str, Any]:
    """Average the score of random sets of half of the layers that lack each one (Figure 5)."""
    found = average_without_layer(
        trainer,
        depth=run.size.cuts["half"],
        metric=run.study.metric,
        samples=run.size.importance,
        seed=IMPORTANCE_SEED,
        progress=False,
    )
    return {"metric": found.metric, "scores": {stack: list(values) for stack, values in found.scores.items()}}
