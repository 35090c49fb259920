"""Train what is not in the journal yet, one run after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reproduction.disk import telling_of_a_full_disk
from reproduction.journal import FILE, Journal
from reproduction.plan import Run
from reproduction.rows import Source
from reproduction.shared_inputs import InputsOfStudies

Say = Callable[[str], Any]


class Engine:
    """Trains runs into one folder: models, checkpoints, tokenizers and the journal.

    Args:
        output: The folder.
        source: Where the rows are.
        say: Called with a line at the beginning and the end of each run.
    """

    def __init__(self, output: Path, source: Source, *, say: Say = lambda line: None) -> None:
        self.journal = Journal(output / FILE)
        self._output, self._source, self._say = output, source, say
        self._inputs = InputsOfStudies(source, output)

    def key(self, run: Run) -> str:
        """Return what the journal knows a run by."""
        return run.key(lambda one: self._source.digest(one.size.data))

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Return the runs that are not in the journal."""
        return [run for run in runs if self.journal.find(self.key(run)) is None]

    def train(self, runs: Sequence[Run]) -> list[Any]:
        """Train the runs that are missing, and return the records of all."""
        with telling_of_a_full_disk(self._output):
            return [self.train_one(run) for run in runs]

    def train_one(self, run: Run) -> Any:
        """Return the record of a run; train it first if it is not in the journal."""
        key = self.key(run)
        known = self.journal.find(key)
        if known is not None:
            return known
        if run.source is not None:
            self._have_model(run.source)
        from hf_layerdrop.evaluation.ranks import processes
        from reproduction.training import train_run

        self._say(f"{run.name}, seed {run.seed}: {run.steps:,} steps")
        source = None if run.source is None else self._model(run.source)
        found = train_run(run, self._inputs.of(run), self._folder(run), source)
        record = {
            "key": key,
            "study": run.study.name,
            "size": run.size_name,
            "arm": run.arm.name,
            "seed": run.seed,
            **({"short": True} if run.short else {}),
            **found,
            "settings": run.settings(),
        }
        ranks = processes()
        self.journal.add(record, write=ranks.is_main_process)
        if ranks.is_main_process:
            self._remove_checkpoints(run)
        ranks.wait_for_everyone()  # its model is then on the disk for whoever begins with it
        score = ", ".join(f"{cut} {values['metrics'][run.study.metric]:.4g}" for cut, values in found["cuts"].items())
        self._say(f"{run.name}, seed {run.seed}: {run.study.metric} {score}; {found['cpu_seconds']:.0f} CPU seconds")
        return record

    def _have_model(self, run: Run) -> None:
        """Train the model that another run needs, also where the journal has it but its files are gone."""
        self.train_one(run)
        if not (self._model(run) / "config.json").is_file():
            from hf_layerdrop.evaluation.ranks import processes
            from reproduction.training import train_run

            self._say(f"{run.name}, seed {run.seed}: its model is gone, so it is trained again")
            source = None if run.source is None else self._model(run.source)
            train_run(run, self._inputs.of(run), self._folder(run), source)
            if processes().is_main_process:
                self._remove_checkpoints(run)
            processes().wait_for_everyone()

    def _folder(self, run: Run) -> Path:
        return self._output / run.study.name / f"{run.arm.name}-seed{run.seed}-{self.key(run)[:8]}"

    def _model(self, run: Run) -> Path:
        return self._folder(run) / "model"

    def _remove_checkpoints(self, run: Run) -> None:
        folder = self._folder(run)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
