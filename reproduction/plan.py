"""Which trainings a table or figure needs, in which order, and by what each is known in the journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reproduction.budget import layers_a_step
from reproduction.errors import ReproductionError
from reproduction.experiment import Experiment
from reproduction.study import DEEP, LAYERS, MINI, SHALLOWER, Arm, Size, Study, settings_of

SHORT_STEPS, SHORT_ROWS = 4, 64


@dataclass(frozen=True)
class Run:
    """One arm of one study at one seed.

    Attributes:
        study: Its study.
        size: The settings of the size.
        size_name: ``mini`` or ``paper``.
        arm: The arm.
        seed: The seed of weights, draws and order of the rows.
        source: The run whose model it begins with, or learns from.
        short: Whether it is only to show that all works.
    """

    study: Study
    size: Size
    size_name: str
    arm: Arm
    seed: int
    source: Run | None = None
    short: bool = False

    @property
    def name(self) -> str:
        """How progress and folders call it."""
        return f"{self.study.name}/{self.arm.name}"

    @property
    def steps(self) -> int:
        """How many optimizer steps it takes."""
        steps = self.size.training["max_steps"] * self.arm.steps
        if self.arm.budget == LAYERS and not self.short:
            steps *= sum(self.size.layers.values()) / layers_a_step(self.size, self.arm)
        return max(1, round(steps))

    @property
    def training(self) -> dict[str, Any]:
        """Return the arguments of its training; a warmup is as long a part of a shorter one as of the whole."""
        training: dict[str, Any] = {**self.size.training, "max_steps": self.steps}
        if training.get("warmup_steps", 0) >= 1:  # less is a share of the steps
            training["warmup_steps"] = round(training["warmup_steps"] * self.arm.steps)
        if self.arm.learning_rate is not None:
            training["learning_rate"] = self.arm.learning_rate
        return training

    @property
    def keeps_model(self) -> bool:
        """Whether its model is kept on the disk: another arm begins with it, or all are kept."""
        return self.size.keep_models or any(arm.source == self.arm.name for arm in self.study.arms.values())

    @property
    def vocab_size(self) -> int:
        """Most tokens of its tokenizer, which may be that of the run it begins with."""
        return self.source.vocab_size if self.size.tokenizer_of and self.source else self.size.vocab_size

    def settings(self) -> dict[str, Any]:
        """Return all that decides its numbers, but for the data, as JSON values."""
        own: dict[str, Any] = {
            "study": self.study.name,
            "task": self.study.task,
            "size": self.size_name,
            "settings": settings_of(self.size),
            "arm": settings_of(self.arm),
            "seed": self.seed,
            "short": self.short,
        }
        own["settings"]["training"] = self.training
        own["settings"].pop("seeds")
        own["settings"].pop("differs")
        own["settings"].pop("keep_models", None)
        return own | ({"source": self.source.settings()} if self.source else {})

    def key(self, digest_of: Callable[[Run], str]) -> str:
        """Return what tells it from all runs with other settings or data.

        Args:
            digest_of: Returns the digest of the rows of a run.
        """
        parts: list[Any] = []
        run: Run | None = self
        while run is not None:
            parts += [run.settings(), digest_of(run)]
            run = run.source
        text = json.dumps(parts, sort_keys=True, default=list)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def plan_runs(
    experiment: Experiment,
    studies: Mapping[str, Study],
    *,
    size: str = MINI,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] = (),
    only: Sequence[str] = (),
    short: bool = False,
) -> list[Run]:
    """Return the runs of an experiment, each once, and after those that it needs; all arms of a seed come together.

    Args:
        experiment: The table or figure.
        studies: All studies by name.
        size: ``mini`` or ``paper``.
        seeds: Instead of those of the size.
        arms: Only these, ``arm`` or ``study/arm``, and what they need.
        only: Only these studies.
        short: A few steps on a few rows, to see that all works.

    Raises:
        ReproductionError: If an arm, a study or the size is not there.
    """
    for name in only:
        if name not in experiment.studies_at(size):
            raise ReproductionError(
                f"{experiment.name} has no study {name!r}; choose among {', '.join(experiment.studies_at(size))}."
            )
    chosen = [studies[name] for name in only or experiment.studies_at(size) if only or size in studies[name].sizes]
    wanted = {study.name: _wanted_arms(experiment, study) for study in chosen}
    if arms:
        wanted = _narrowed(wanted, arms)
    runs: dict[tuple[str, str, int], Run] = {}
    for study in chosen:
        found = _size_of(study, size, short)
        for seed in seeds if seeds is not None else found.seeds:
            for arm in wanted[study.name]:
                for run in _with_sources(_run(study, arm, seed, studies, size, short)):
                    runs.setdefault((run.study.name, run.arm.name, seed), run)
    return list(runs.values())


def _wanted_arms(experiment: Experiment, study: Study) -> list[str]:
    """Return the arms that an experiment shows of a study, those that tell whether depth pays before all others."""
    claimed = [side.arm for claim in experiment.claims_of(study.name) for side in (claim.better, claim.than)]
    about_depth = any(claim.about_depth for claim in experiment.claims_of(study.name))
    first = [DEEP, *SHALLOWER] if about_depth else []
    return [arm for arm in dict.fromkeys([*first, *experiment.arms, *claimed]) if arm in study.arms]


def _narrowed(wanted: Mapping[str, list[str]], arms: Sequence[str]) -> dict[str, list[str]]:
    known = {name for study, own in wanted.items() for arm in own for name in (arm, f"{study}/{arm}")}
    for name in arms:
        if name not in known:
            raise ReproductionError(f"There is no arm {name!r} here; choose among {', '.join(sorted(known))}.")
    return {study: [arm for arm in own if arm in arms or f"{study}/{arm}" in arms] for study, own in wanted.items()}


def _run(study: Study, name: str, seed: int, studies: Mapping[str, Study], size: str, short: bool) -> Run:
    arm = study.arms[name]
    source = None
    if arm.source is not None:
        other, _, source_arm = arm.source.rpartition("/")
        source = _run(studies[other] if other else study, source_arm, seed, studies, size, short)
    return Run(study, _size_of(study, size, short), size, arm, seed, source, short)


def _with_sources(run: Run) -> Iterator[Run]:
    if run.source is not None:
        yield from _with_sources(run.source)
    yield run


def _size_of(study: Study, name: str, short: bool) -> Size:
    if name not in study.sizes:
        raise ReproductionError(f"Study {study.name} has no size {name!r}; choose {' or '.join(study.sizes)}.")
    size = study.sizes[name]
    if not short:
        return size
    data = replace(size.data, train_rows=SHORT_ROWS, validation_rows=SHORT_ROWS // 4, train_tokens=0)
    training = {**size.training, "max_steps": SHORT_STEPS, "save_steps": SHORT_STEPS // 2}
    return replace(size, training=training, data=data, importance=0)
