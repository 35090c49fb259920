"""The processes of a launch that measure one model together: each a part, and all know all of it afterwards.

They meet in a group of their own, on the CPU, whatever the devices talk by: a rank may wait there for as long as the
others measure, and no device waits with it. Every meeting also tells of a failure, so that one rank that fails ends all
of them. Between meetings each rank is, for accelerate and for Trainer, a launch of one process: it reads all batches,
and gives to the bit what one process gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState, is_initialized
from torch import accelerator, distributed
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer

from hf_layerdrop import compat
from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.errors import LayerDropStateError, said_by
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.injection.ranks.agreement import RANKS_TIMEOUT

Value = TypeVar("Value")

_AS_LONG_AS_IT_TAKES = timedelta(days=100)


@dataclass(frozen=True)
class _Said:
    """What a rank brings to a meeting."""

    purpose: str
    value: Any = None
    error: str = ""
    is_interrupt: bool = False


@dataclass(eq=False)
class Ranks:
    """Those that measure together, of which this process is one; without others, every meeting is with itself."""

    rank: int = 0
    size: int = 1
    _group: Any = field(default=None, repr=False)
    _is_over: bool = field(default=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def gather(self, value: Value, purpose: str = "") -> list[Value]:
        """Return what each rank has, in their order; all have to come for the same purpose.

        Raises:
            LayerDropStateError: If a rank has failed, or has come for something else.
            KeyboardInterrupt: If a rank was interrupted.
        """
        if self.size == 1:
            return [value]
        parts = self._exchange(_Said(purpose, value))
        for rank, part in enumerate(parts):
            if part.error:
                self._is_over = True
                if part.is_interrupt:
                    raise KeyboardInterrupt
                raise LayerDropStateError(f"Rank {rank} failed, and all ranks end with it: {part.error}.")
        other = next((rank for rank, part in enumerate(parts) if part.purpose != parts[0].purpose), None)
        if other is not None:
            self._is_over = True
            raise LayerDropStateError(
                f"Ranks 0 and {other} were asked for different work: call with the same model, data and settings on "
                "every rank."
            )
        return [part.value for part in parts]

    def check_same(self, *values: object) -> None:
        """Refuse to go on where the ranks have different values; see `gather`."""
        if self.size > 1:
            self.gather(None, fingerprint(values))

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes, while the others wait."""
        found: list[Any] = self.gather(compute() if self.is_first else None)
        return found[0]

    def tell_failure(self, error: BaseException) -> None:
        """Tell the others, in the meeting to which they come next, unless it is their failure that ended this one."""
        if self.size > 1 and not self._is_over:
            with suppress(Exception):  # where they have ended, there is nobody to tell
                self._exchange(_Said("", None, said_by(error), not isinstance(error, Exception)))

    def _exchange(self, said: _Said) -> list[_Said]:
        parts: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(parts, said, group=self._group)
        except RuntimeError as error:  # the connection was closed
            self._is_over = True
            raise LayerDropStateError("Another rank has ended before its work was done: see what it says.") from error
        return parts


ALONE = Ranks()


@contextmanager
def ranks_of_launch(model_or_trainer: PreTrainedModel | Trainer) -> Iterator[Ranks]:
    """Divide work among the processes of a launch inside the ``with`` block; they all have to come to it.

    It is done alone where there is no launch, where this process does a part of such work already, and where the model
    is sharded: its ranks can only run together.

    Raises:
        LayerDropStateError: If a rank has another model, does not come within five minutes, or fails inside the block.
    """
    state = processes()
    if state.num_processes == 1 or not distributed.is_initialized() or _is_sharded(model_or_trainer):
        yield ALONE
        return
    _check_models(model_or_trainer, state.process_index, state.num_processes)
    group = distributed.new_group(backend="gloo", timeout=_AS_LONG_AS_IT_TAKES)
    ranks = Ranks(state.process_index, state.num_processes, group)
    try:
        with _each_alone():
            yield ranks
        ranks.gather(None, "the end")
    except BaseException as error:
        ranks.tell_failure(error)
        raise
    finally:
        distributed.destroy_process_group(group)


def processes() -> PartialState:
    """Return what knows the processes that ``accelerate launch`` or torchrun started; one, if nothing did.

    It is the same for the whole process, and Trainer's own, so that it has to be told of a machine without accelerator.
    """
    return PartialState(cpu=not accelerator.is_available())


@contextmanager
def _each_alone() -> Iterator[None]:
    """Make accelerate, and so Trainer, take this process for the only one; it stays the writing one if it was."""
    states: list[Any] = [PartialState(), *([AcceleratorState()] if is_initialized() else [])]
    before = [(state.num_processes, state.distributed_type) for state in states]
    try:
        for state in states:
            state.num_processes, state.distributed_type = 1, DistributedType.NO
        yield
    finally:
        for state, (count, kind) in zip(states, before, strict=True):
            state.num_processes, state.distributed_type = count, kind


def _is_sharded(model: Any) -> bool:
    """Tell whether no rank holds the whole model, or will hold it once Trainer has prepared it."""
    if isinstance(model, Trainer):
        kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        if model.accelerator.distributed_type in kinds:
            return True
        model = model.model
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _check_models(model: Any, rank: int, size: int) -> None:
    """Compare the models of the ranks, by the store that they met in: it can be waited for with a limit."""
    store = compat.RANKS_STORE.value()
    plain = model.accelerator.unwrap_model(model.model) if isinstance(model, Trainer) else transformers_model(model)
    keys = [f"hf_layerdrop/measure/{_Meetings.count}/{number}" for number in range(size)]
    # Without buffers: after DDP, running statistics are those of each rank's last batch.
    store.set(keys[rank], fingerprint(type(plain).__name__, dict(plain.named_parameters())))
    try:
        store.wait(keys, RANKS_TIMEOUT)
    except Exception as error:
        missing = next((number for number, key in enumerate(keys) if not store.check([key])), rank)
        store.delete_key(keys[rank])
        raise LayerDropStateError(
            f"Rank {missing} did not come to measure with rank {rank} within {RANKS_TIMEOUT}: call this on every rank "
            "of the launch, or without a launch."
        ) from error
    theirs = [store.get(key).decode() for key in keys]
    _Meetings.count += 1
    different = next((other for other, digest in enumerate(theirs) if digest != theirs[0]), None)
    if different is not None:
        raise LayerDropStateError(
            f"Ranks 0 and {different} have different models (digests {theirs[0][:8]} and {theirs[different][:8]}): "
            "load the same checkpoint on every rank."
        )


class _Meetings:
    """How often the ranks of this process have met to measure."""

    count = 0
