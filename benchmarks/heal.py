"""Quality back after a cut of a third and a half: MiniLM on SST-2 (accuracy), or a small Llama on text (perplexity).

A whole model is trained for ``steps`` steps, then cut, and healed by each method on its own: a map from 256 rows, or
``healing_steps`` steps at ``rate_share`` of the learning rate (LoRA at ``lora_factor`` times that). Beside them stands
a model that had that depth from the first step on and was trained for ``steps`` steps: MiniLM is cut first, the Llama
begins anew. Arms, seeds and depths are fixed before a run; ``journal`` keeps each one, and the same command goes on
after an interrupt (the whole model of a seed is trained again where one of its arms is left). ``model`` is minilm or
lm; ``data`` a folder with train.parquet and validation.parquet for lm, such as WikiText-2, else it reads the sentences
of SST-2. ``short`` shows in a minute that it works, and nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._journal import Journal, mean_and_sd, shown
from benchmarks._trained import SUBJECTS, Subject, shortened, train, training_arguments

if TYPE_CHECKING:
    from hf_layerdrop import HealingConfig
    from hf_layerdrop.tasks.task import TaskData

DEPTHS = (4, 3)
ALONE = "alone"
ARMS = ("map", "lora", "whole", "distill", "map,distill", ALONE)
TITLES = {ALONE: "trained at that depth", "map,distill": "map, then distill"}


def run(
    model: str = "minilm",
    data: str = "",
    steps: int = 0,
    healing_steps: int = 300,
    rate_share: float = 0.2,
    lora_factor: float = 10.0,
    seeds: str = "0,1,2",
    threads: int = 1,
    arms: str = "all",
    journal: str = "",
    short: bool = False,
) -> dict[str, Any]:
    """Train, cut and heal with every seed, and print the metric by depth, mean and spread over the seeds."""
    import torch

    from hf_layerdrop import HealingConfig

    torch.set_num_threads(threads)
    chosen = list(ARMS) if arms == "all" else arms.split("+")
    if unknown := sorted(set(chosen) - set(ARMS)):
        raise SystemExit(f"There is no arm {unknown[0]}; the arms are {', '.join(ARMS)}; join some with +.")
    if model not in SUBJECTS:
        raise SystemExit(f"There is no model {model!r}; the models are {', '.join(SUBJECTS)}.")
    subject, depths = SUBJECTS[model], DEPTHS
    rows, steps = subject.data(data), steps or subject.steps
    if short:
        rows, steps, healing_steps, seeds, depths = shortened(rows), 2, 2, "0", DEPTHS[1:]
    known, runs = Journal(journal), []
    for seed in map(int, seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            trial = _Trial(subject, rows, steps, seed, Path(folder))
            for depth, arm in ((depth, arm) for depth in depths for arm in chosen):
                key = f"{model}, {arm}, {depth} layers, seed {seed}, {steps} steps, {Path(data).name or 'SST-2'}"
                measure = partial(trial.alone, depth)
                if arm != ALONE:
                    methods = HealingConfig(tuple(arm.split(",")), rows=16 if short else 256, lora_factor=lora_factor)
                    measure = partial(trial.healed, depth, methods, healing_steps, rate_share)
                    key += f", healed {healing_steps} at {rate_share}, LoRA times {lora_factor}"
                found = known.measured(key, measure)
                runs.append({"arm": arm, "depth": depth, "seed": seed, **found})
                print(f"{key}: {found['score']}", flush=True)
    table = _before(runs) | {arm: _summary([one for one in runs if one["arm"] == arm]) for arm in chosen}
    _print(table, depths, subject.metric, len(seeds.split(",")))
    numbers = {"model": model, "steps": steps, "healing_steps": healing_steps, "rate_share": rate_share}
    return {**numbers, "seeds": seeds, "short": short, "metric": subject.metric, "arms": table, "runs": runs}


class _Trial:
    """What is done with one seed."""

    def __init__(self, subject: Subject, data: TaskData, steps: int, seed: int, folder: Path) -> None:
        self._subject, self._data, self._steps, self._seed, self._folder = subject, data, steps, seed, folder
        self._whole = cache(lambda: str(self._trained(None).args.output_dir))

    def _trained(self, depth: int | None) -> Any:
        return train(self._subject, self._data, self._folder / f"{depth}", self._steps, self._seed, depth)

    def alone(self, depth: int) -> dict[str, Any]:
        """Train a model of that depth; return its score and the seconds of computing."""
        start = time.process_time()
        trainer = self._trained(depth)
        seconds = time.process_time() - start
        return {"score": trainer.evaluate()[f"eval_{self._subject.metric}"], "cpu_seconds": seconds}

    def healed(self, depth: int, healing: HealingConfig, steps: int, share: float) -> dict[str, Any]:
        """Cut the whole model and heal it; return the scores before and after, and the seconds of computing."""
        from hf_layerdrop import heal

        whole = self._whole()
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            fields = self._subject.training | {"learning_rate": share * self._subject.training["learning_rate"]}
            run = heal(
                self._data,
                whole,
                training_arguments(f"{folder}/unused", steps, self._seed, **fields),
                f"{folder}/healed",
                keep_layers=depth,
                healing=healing,
                max_length=self._subject.max_length,
            )
        before, cut, *_, last = (stage.result.metrics[self._subject.metric] for stage in run.stages)
        notes = [stage.note for stage in run.stages if stage.note]
        seconds = time.process_time() - start
        return {"score": last, "whole": before, "cut": cut, "cpu_seconds": seconds, "notes": notes}


def _summary(runs: list[dict[str, Any]], field: str = "score") -> dict[str, Any]:
    found = {}
    for depth in sorted({one["depth"] for one in runs}, reverse=True):
        values = {one["seed"]: one[field] for one in runs if one["depth"] == depth}
        found[str(depth)] = mean_and_sd(list(values.values()))
    return found


def _before(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the whole models and their cuts score, which every arm that heals has measured again."""
    healed = [one for one in runs if "cut" in one]
    return {"whole model": _summary(healed, "whole"), "cut": _summary(healed, "cut")} if healed else {}


def _print(table: Mapping[str, Any], depths: tuple[int, ...], metric: str, seeds: int) -> None:
    print(f"\n{metric.capitalize()}, {seeds} seeds (mean, and standard deviation over the seeds)\n")
    print(f"| | {' | '.join(f'{depth} of 6' for depth in depths)} |\n| --- |{' ---: |' * len(depths)}")
    for arm, row in table.items():
        print(f"| {TITLES.get(arm, arm)} | {' | '.join(shown(row.get(str(depth))) for depth in depths)} |")
