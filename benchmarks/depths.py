"""One training for several depths, at equal layer forwards: all-MiniLM-L6 on the package's sample of SST-2.

Every arm gets as many layer forwards as ``steps`` steps of the whole model; "alone" cuts first and then trains that
many steps, so that a shallow model costs its share, and all depths together what training each costs. Accuracy of 872
rows, without finetuning; evenly spread cuts, nested ones where those were trained. Arms, seeds and depths are fixed
here, before a run; ``journal`` keeps each run and which rows it had right, and the same command goes on after an
interrupt. ``short`` shows in a minute that it works, and nothing else.
"""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from typing import Any

import numpy as np

from benchmarks._journal import Journal, mean_and_sd, shown
from benchmarks._trained import SUBJECTS, training_arguments

DEPTHS = (6, 4, 3, 2)
RESAMPLES = 2000


def run(
    steps: int = 100, seeds: str = "0", threads: int = 1, arms: str = "all", journal: str = "", short: bool = False
) -> dict[str, Any]:
    """Train every arm with every seed, and print accuracy by depth, mean and spread over the seeds."""
    import torch

    from hf_layerdrop.cli.demo_run import _bf16_pays

    torch.set_num_threads(threads)
    chosen = list(ARMS) if arms == "all" else arms.split(",")
    if unknown := sorted(set(chosen) - set(ARMS)):
        raise SystemExit(f"There is no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}.")
    if short:
        steps, seeds, chosen = 2, "0", chosen[:2] if arms == "all" else chosen
    known = Journal(journal)
    bf16 = False if short else _bf16_pays()  # asked once, so that all arms are trained alike
    runs = []
    for seed in map(int, seeds.split(",")):
        for arm in chosen:
            key = f"{arm}, seed {seed}, {steps} steps"
            found = known.measured(key, partial(_measured, arm, seed, steps, short, bf16))
            runs.append({"arm": arm, "seed": seed, **found})
            print(f"{key}: {found['accuracy']}, {found['seconds']:.0f} s", flush=True)
    table = {arm: _summary([one for one in runs if one["arm"] == arm], steps) for arm in chosen}
    _print(table, len(seeds.split(",")), steps)
    against = _against_alone(runs)
    _print_against(against)
    return {
        "steps": steps,
        "seeds": seeds,
        "short": short,
        "depths": DEPTHS,
        "arms": table,
        "against_alone": against,
        "runs": runs,
    }


def _standard(seed: int) -> dict[str, Any]:
    return {"layerdrop": 0.0}


def _alone(depth: int) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {"layerdrop": 0.0, "keep_layers": depth}


def _dropping(seed: int) -> dict[str, Any]:
    from hf_layerdrop import LayerDropConfig

    return {"layerdrop": LayerDropConfig(0.25, seed=seed)}


def _by_depth(seed: int) -> dict[str, Any]:
    from hf_layerdrop import LayerDropConfig

    return {"layerdrop": LayerDropConfig(0.5, sampler="depth", seed=seed)}


def _listed(seed: int) -> dict[str, Any]:
    from hf_layerdrop import LayerDropConfig

    return {"layerdrop": LayerDropConfig.for_depths(list(DEPTHS), seed=seed)}


def _nested(seed: int) -> dict[str, Any]:
    from hf_layerdrop import LayerDropConfig

    return {"layerdrop": LayerDropConfig.for_depths(list(DEPTHS), nested=True, seed=seed)}


def _together(**settings: Any) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {"layerdrop": 0.0, "depths": {"seed": seed, **settings}}


ARMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "standard": _standard,
    "layerdrop": _dropping,
    "sampler": _by_depth,
    "list": _listed,
    "nested": _nested,
    "together": _together(),
    "together-labels": _together(distillation_weight=0.0),
    "together-all": _together(per_step=len(DEPTHS)),
    **{f"alone-{depth}": _alone(depth) for depth in DEPTHS[1:]},
}

TITLES = {
    "standard": "standard, then cut",
    "layerdrop": "LayerDrop 0.25",
    "sampler": "sampler `depth`, rate 0.5",
    "list": "`for_depths`: one depth a step",
    "nested": "`for_depths`, nested sets",
    "together": "`DepthTraining`: three depths a step, distilled",
    "together-labels": "`DepthTraining`: three depths a step, labels alone",
    "together-all": "`DepthTraining`: all four a step, distilled",
    **{f"alone-{depth}": f"cut to {depth} first, trained alone" for depth in DEPTHS[1:]},
}


def _measured(arm: str, seed: int, steps: int, short: bool, bf16: bool) -> dict[str, Any]:
    """Train one arm; return the accuracy at each depth, what it cost and how long it took."""
    from transformers import AutoTokenizer, Trainer, set_seed

    from hf_layerdrop import AutoLayerDropModelForSequenceClassification, DepthTrainer, DepthTraining, evaluate_depths
    from hf_layerdrop.cli.demo_run import demo_checkpoint, demo_data
    from hf_layerdrop.tasks.classification import padding_collator
    from hf_layerdrop.tasks.metrics import compute_metrics_for
    from hf_layerdrop.tasks.task import tokenize

    settings = ARMS[arm](seed)
    together, nested = settings.pop("depths", None), arm == "nested"
    set_seed(seed)
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(demo_checkpoint(), num_labels=2, **settings)
    model.get_input_embeddings().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint())
    data = tokenize(demo_data(), tokenizer, max_length=SUBJECTS["minilm"].max_length)
    validation = next(iter(data.validation.values()))
    validation = validation.select(range(64)) if short else validation
    right: list[str] = []  # the rows that were right, by depth as measured
    lengths = [len(tokens) for tokens in validation["input_ids"]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder,
            steps if "keep_layers" in settings else round(6 * steps / _layers_a_step(model, together)),
            seed,
            **SUBJECTS["minilm"].training,
            bf16=bf16,
            optim="adamw_torch_fused",
        )
        given = {
            "model": model,
            "args": arguments,
            "train_dataset": data.train,
            "eval_dataset": validation.select(sorted(range(len(lengths)), key=lengths.__getitem__)),
            "data_collator": padding_collator(tokenizer),
            "compute_metrics": _noting(right, compute_metrics_for(data.task)),
        }
        trainer = (
            Trainer(**given)
            if together is None
            else DepthTrainer(**given, depth_training=DepthTraining(list(DEPTHS), **together))
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        depth = model.config.num_hidden_layers
        own = settings.get("keep_layers")
        measured = [own] if own else list(DEPTHS)
        found = evaluate_depths(
            trainer, depths=[f"nested:{one}" if nested and one < depth else one for one in measured]
        )
    return {
        "accuracy": {str(one): result.metrics["accuracy"] for one, result in zip(measured, found, strict=True)},
        "right": dict(zip(map(str, measured), right, strict=True)),
        "optimizer_steps": arguments.max_steps,
        "layer_forwards": _spent(trainer),
        "bf16": bf16,
        "seconds": seconds,
    }


def _noting(right: list[str], compute_metrics: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
    """Note which rows are right, a bit each, every time that metrics are computed."""

    def noting(prediction: Any) -> dict[str, float]:
        rows = prediction.predictions.argmax(-1) == prediction.label_ids
        right.append(base64.b64encode(np.packbits(rows).tobytes()).decode())
        return compute_metrics(prediction)

    return noting


def _layers_a_step(model: Any, together: Mapping[str, Any] | None) -> float:
    """Return how many layers a step runs in the mean, forwards of several depths added up."""
    from hf_layerdrop import layerdrop_state

    if together is None:
        return float(next(iter(layerdrop_state(model).draws.values())).mean_kept)
    if together.get("per_step") == len(DEPTHS):
        return float(sum(DEPTHS))
    return DEPTHS[0] + DEPTHS[-1] + mean(DEPTHS[1:-1])


def _spent(trainer: Any) -> int:
    from hf_layerdrop import layerdrop_state

    (draw,) = layerdrop_state(trainer.model).draws.values()
    return round(draw.layer_forwards)


def _summary(runs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    by_depth = {}
    for depth in map(str, DEPTHS):
        if values := [one["accuracy"][depth] for one in runs if depth in one["accuracy"]]:
            by_depth[depth] = mean_and_sd(values)
    return {"accuracy": by_depth, "budget": mean(one["layer_forwards"] for one in runs) / (6 * steps)}


def _against_alone(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what each arm is better by than each depth trained alone: mean over seeds and rows, and its interval.

    Of the seeds that both have; rows are drawn again, the same for both and for all seeds.
    """
    found: dict[str, Any] = {}
    rows = {(one["arm"], one["seed"], depth): _bits(bits) for one in runs for depth, bits in one["right"].items()}
    random = np.random.default_rng(0)
    for arm in dict.fromkeys(one["arm"] for one in runs if not one["arm"].startswith("alone")):
        for depth in map(str, DEPTHS):
            own = "standard" if depth == str(DEPTHS[0]) else f"alone-{depth}"
            seeds = [one["seed"] for one in runs if one["arm"] == arm and (own, one["seed"], depth) in rows]
            if arm == own or not seeds:
                continue
            gaps = np.mean([rows[arm, seed, depth] - rows[own, seed, depth] for seed in seeds], axis=0)
            drawn = gaps[random.integers(len(gaps), size=(RESAMPLES, len(gaps)))].mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            of_depth = {"gap": float(gaps.mean()), "low": float(low), "high": float(high), "seeds": len(seeds)}
            found.setdefault(arm, {})[depth] = of_depth
    return found


def _bits(text: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8)).astype(np.int8)


def _print_against(against: Mapping[str, Any]) -> None:
    print("\nPoints of accuracy against each depth trained alone (6: against standard), 95 % interval over the rows\n")
    print(f"| training | {' | '.join(map(str, DEPTHS))} |\n| --- |{' ---: |' * len(DEPTHS)}")
    for arm, by_depth in against.items():
        points = ["" if (one := by_depth.get(str(depth))) is None else _points(one) for depth in DEPTHS]
        print(f"| {TITLES[arm]} | {' | '.join(points)} |")


def _points(one: Mapping[str, float]) -> str:
    return f"{100 * one['gap']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


def _print(table: Mapping[str, Any], seeds: int, steps: int) -> None:
    print(f"\nAccuracy, {seeds} seeds (mean, and standard deviation over the seeds), budget of {steps} whole steps\n")
    print(f"| training | layer forwards | {' | '.join(map(str, DEPTHS))} |\n| --- | ---: |{' ---: |' * len(DEPTHS)}")
    for arm, row in table.items():
        accuracies = [shown(row["accuracy"].get(str(depth))) for depth in DEPTHS]
        print(f"| {TITLES[arm]} | {row['budget']:.2f} | {' | '.join(accuracies)} |")
