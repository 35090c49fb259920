"""Quality back after a cut: all-MiniLM-L6 on the package's sample of SST-2, cut to two thirds and to a half.

A whole model is trained for ``steps`` steps, then cut, and healed by each method on its own: a map from 256 rows, or
``healing_steps`` steps at a fifth of the learning rate (LoRA at ten times that). Beside them stands a model that was
cut first and then trained for ``steps`` steps. Accuracy of 872 rows. Arms, seeds and depths are fixed before a run;
``journal`` keeps each one, and the same command goes on after an interrupt (the whole model of a seed is trained again
where one of its arms is left). ``short`` shows in a few minutes that it works, and nothing else.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DEPTHS = (4, 3)
ARMS = ("map", "lora", "whole", "distill", "map,distill", "alone")
TITLES = {"alone": "cut first, then trained as long as the whole", "map,distill": "map, then distill"}
LEARNING_RATE, ROWS, MAX_LENGTH = 1e-4, 32, 64


def run(
    steps: int = 300,
    healing_steps: int = 300,
    seeds: str = "0,1,2",
    threads: int = 1,
    arms: str = "all",
    journal: str = "",
    short: bool = False,
) -> dict[str, Any]:
    """Train, cut and heal with every seed, and print accuracy by depth, mean and spread over the seeds."""
    import torch

    torch.set_num_threads(threads)
    chosen = list(ARMS) if arms == "all" else arms.split("+")
    if unknown := sorted(set(chosen) - set(ARMS)):
        raise SystemExit(f"There is no arm {unknown[0]}; the arms are {', '.join(ARMS)}; join some with +.")
    depths = DEPTHS
    if short:
        steps, healing_steps, seeds, depths = 2, 2, "0", DEPTHS[1:]
    known = _read(Path(journal)) if journal else {}
    runs = []
    for seed in map(int, seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            whole = cache(lambda seed=seed, folder=folder: _trained(seed, steps, Path(folder), short))
            for depth, arm in ((depth, arm) for depth in depths for arm in chosen):
                key = f"{arm}, {depth} layers, seed {seed}, {steps} and {healing_steps} steps"
                if key not in known:
                    found = _measured(arm, depth, seed, steps if arm == "alone" else healing_steps, whole, short)
                    known[key] = {"key": key, "arm": arm, "depth": depth, "seed": seed, **found}
                    print(f"{key}: {found['accuracy']}", flush=True)
                    if journal:
                        with Path(journal).open("a") as file:
                            file.write(json.dumps(known[key]) + "\n")
                runs.append(known[key])
    table = {arm: _summary([one for one in runs if one["arm"] == arm]) for arm in chosen}
    before = _before(runs)
    _print({**before, **table}, depths, len(seeds.split(",")))
    numbers = {"steps": steps, "healing_steps": healing_steps, "seeds": seeds, "short": short}
    return {**numbers, "before": before, "arms": table, "runs": runs}


def _data(short: bool) -> Any:
    from hf_layerdrop.cli.demo_run import demo_data

    data = demo_data()
    if not short:
        return data
    rows = data.validation["validation"].select(range(64))
    return replace(data, train=data.train.select(range(64)), validation={"validation": rows})


def _arguments(folder: str, steps: int, rate: float, seed: int) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=64,
        learning_rate=rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        use_cpu=not torch.accelerator.is_available(),
        train_sampling_strategy="group_by_length",
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _trained(seed: int, steps: int, folder: Path, short: bool, keep_layers: int | None = None) -> Path:
    """Train the model, whole or cut first; return its folder."""
    from transformers import AutoTokenizer, set_seed

    from hf_layerdrop import AutoLayerDropModelForSequenceClassification
    from hf_layerdrop.cli.demo_run import demo_checkpoint
    from hf_layerdrop.tasks.task import tokenize
    from hf_layerdrop.training.trainers import build_trainer

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint())
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        demo_checkpoint(), num_labels=2, layerdrop=0.0, keep_layers=keep_layers
    )
    data = tokenize(_data(short), tokenizer, max_length=MAX_LENGTH)
    place = folder / f"trained-{keep_layers or 'whole'}"
    trainer = build_trainer(data, model, tokenizer, _arguments(str(place), steps, LEARNING_RATE, seed))
    trainer.train()
    trainer.save_model()
    return place


def _measured(arm: str, depth: int, seed: int, steps: int, whole: Any, short: bool) -> dict[str, Any]:
    """Heal, or train at that depth; return the accuracy before and after, and how long it took."""
    from hf_layerdrop import HealingConfig, heal

    with tempfile.TemporaryDirectory() as folder:
        if arm == "alone":
            return _alone(depth, seed, steps, Path(folder), short)
        arguments = _arguments(f"{folder}/unused", steps, LEARNING_RATE / 5, seed)
        healing = HealingConfig(tuple(arm.split(",")), rows=16 if short else HealingConfig.rows)
        checkpoint = str(whole())
        run = heal(
            _data(short),
            checkpoint,
            arguments,
            f"{folder}/healed",
            keep_layers=depth,
            healing=healing,
            max_length=MAX_LENGTH,
        )
    whole_, cut, *_, last = (stage.result.metrics["accuracy"] for stage in run.stages)
    seconds = sum(stage.seconds for stage in run.stages)
    notes = [stage.note for stage in run.stages if stage.note]
    return {"accuracy": last, "whole": whole_, "cut": cut, "seconds": seconds, "notes": notes}


def _alone(depth: int, seed: int, steps: int, folder: Path, short: bool) -> dict[str, Any]:
    from hf_layerdrop import AutoLayerDropModelForSequenceClassification, evaluate_depths
    from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
    from hf_layerdrop.tasks.classification import padding_collator
    from hf_layerdrop.tasks.task import tokenize

    start = time.perf_counter()
    place = str(_trained(seed, steps, folder, short, depth))
    seconds = time.perf_counter() - start
    tokenizer = load_tokenizer(place)
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(place)
    rows = tokenize(replace(_data(short), train=None), tokenizer, max_length=MAX_LENGTH).validation["validation"]
    settings = {"metric": "accuracy", "collator": padding_collator(tokenizer), "progress": False}
    (found,) = evaluate_depths(model, rows, depths=["all"], **settings)
    return {"accuracy": found.metrics["accuracy"], "seconds": seconds}


def _read(journal: Path) -> dict[str, dict[str, Any]]:
    if not journal.exists():
        return {}
    rows = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return {row["key"]: row for row in rows}


def _summary(runs: list[dict[str, Any]], field: str = "accuracy") -> dict[str, Any]:
    found = {}
    for depth in sorted({one["depth"] for one in runs}, reverse=True):
        values = list({one["seed"]: one[field] for one in runs if one["depth"] == depth}.values())
        found[str(depth)] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
    return found


def _before(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the whole models and their cuts score, which every arm that heals has measured again."""
    healed = [one for one in runs if "cut" in one]
    return {"whole model": _summary(healed, "whole"), "cut": _summary(healed, "cut")} if healed else {}


def _print(table: Mapping[str, Any], depths: tuple[int, ...], seeds: int) -> None:
    print(f"\nAccuracy, {seeds} seeds (mean, and standard deviation over the seeds)\n")
    print(f"| | {' | '.join(f'{depth} of 6' for depth in depths)} |\n| --- |{' ---: |' * len(depths)}")
    for arm, row in table.items():
        print(f"| {TITLES.get(arm, arm)} | {' | '.join(_shown(row.get(str(depth))) for depth in depths)} |")


def _shown(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.3f}" + (f" ({found['sd']:.3f})" if found["sd"] is not None else "")
