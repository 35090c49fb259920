"""How long the steps of a training take, added up over its interruptions."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class StepClock(TrainerCallback, ExportableState):
    """Add up the time inside training steps: no evaluation, no checkpoint, no start.

    Other jobs on the same machine stretch wall time, so the time of the processor stands beside it. On an accelerator
    that only counts what was queued; there wall time is the one to look at.

    Attributes:
        seconds: Wall time so far.
        cpu_seconds: Time of the processor so far, over all threads of this process.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._began = (0.0, 0.0)

    def state(self) -> dict[str, Any]:
        """Return what Trainer saves in each checkpoint."""
        return {"args": {}, "attributes": {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the times of the checkpoint."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            values = (saved[-1] if isinstance(saved, list) else saved)["attributes"]
            self.seconds, self.cpu_seconds = values["seconds"], values["cpu_seconds"]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the watch."""
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]
