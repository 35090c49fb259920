"""Train one arm, resumable at any step, and measure it at every cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import accelerator
from transformers import PreTrainedModel, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.model_for_arm import model_for_arm
from hf_layerdrop.distillation.trainer import DistillationMixin
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers
from hf_layerdrop.search.average_without_layer import average_without_layer
from hf_layerdrop.training.callbacks import LayerForwardsCallback
from hf_layerdrop.training.train import continue_training, last_complete_checkpoint, measure_depths
from hf_layerdrop.training.trainers import GeneratingTrainer, TaskTrainer, build_trainer, generation_flags
from reproduction.clock import StepClock
from reproduction.plan import Run
from reproduction.shared_inputs import SharedInputs
from reproduction.study import WHOLE

MODEL = "model"  # the folder of the trained model, in that of the run
IMPORTANCE_SEED = 0  # the sets of layers that are scored are the same for every model


class DistillingTaskTrainer(DistillationMixin, TaskTrainer):
    """A `TaskTrainer` with a teacher."""


class DistillingGeneratingTrainer(DistillationMixin, GeneratingTrainer):
    """A `GeneratingTrainer` with a teacher."""


def train_run(run: Run, shared: SharedInputs, folder: Path, source: Path | None) -> dict[str, Any]:
    """Train a run, from its last checkpoint if it has one, and return what the journal keeps of it.

    Args:
        run: What to train.
        shared: Its data.
        folder: Where its checkpoints and then its model go.
        source: The folder of the model that it begins with or learns from.
    """
    arguments = _arguments(run, shared, folder)
    model = _model(run, shared, source)
    trainer, clock, count = _trainer(run, shared, arguments, model, source)
    continue_training(trainer, folder, last_complete_checkpoint(folder))
    forwards = _layer_forwards(trainer, count)
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


def _model(run: Run, shared: SharedInputs, source: Path | None) -> PreTrainedModel:
    """Return the model that an arm trains; one that begins with another's is cut before, if it is to be small."""
    arm, task = run.arm, shared.data.task
    small = arm.start in ("scratch", "distill")
    model = model_for_arm(
        arm.start,
        str(source) if source is not None else shared.config,
        head=task.head,
        depth=run.size.cuts[arm.cut] if small else None,
        rate=arm.rate,
        structure=arm.structure,
        seed=run.seed,
        **(task.kind.settings(task) if source is not None else {}),
    )
    if arm.cut != WHOLE and not small:
        prune_layers(model, run.size.cuts[arm.cut])
        inject_layerdrop(model, 0.0)  # a cut takes LayerDrop out; at rate 0 it counts the layers that run
    return model


def _trainer(
    run: Run, shared: SharedInputs, arguments: TrainingArguments, model: PreTrainedModel, source: Path | None
) -> tuple[Trainer, StepClock, LayerForwardsCallback | None]:
    clock = StepClock()
    if run.arm.start != "distill":
        count = LayerForwardsCallback()
        trainer = build_trainer(shared.data, model, shared.tokenizer, arguments, callbacks=[clock, count])
        return trainer, clock, count
    task = shared.data.task
    distilling = DistillingGeneratingTrainer if task.generation else DistillingTaskTrainer
    teacher = task.model_class.from_pretrained(str(source), layerdrop=0.0)
    trainer = build_trainer(
        shared.data,
        model,
        shared.tokenizer,
        arguments,
        callbacks=[clock],
        trainer_class=distilling,
        teacher=teacher,
    )
    return trainer, clock, None


def _layer_forwards(trainer: Any, count: LayerForwardsCallback | None) -> dict[str, int]:
    if count is not None:
        return {"layer_forwards": count.layer_forwards}
    forwards = trainer.layer_forwards
    return {"layer_forwards": forwards.total, "teacher_layer_forwards": forwards.teacher}


def _measure(run: Run, trainer: Trainer, shared: SharedInputs) -> dict[str, Any]:
    """Measure the whole model and its cuts; a model that was trained small has only the cut that it is."""
    if run.arm.cut != WHOLE:
        return {run.arm.cut: _plain(measure_depths(trainer, shared.data, ["all"])[0])}
    depths = depths_of(trainer.model)
    specs: list[KeepLayers] = [parse_keep_layers(spec, depths) for spec in run.size.cuts.values()]
    results = measure_depths(trainer, shared.data, specs)
    return {name: _plain(result) for name, result in zip(run.size.cuts, results, strict=True)}


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
