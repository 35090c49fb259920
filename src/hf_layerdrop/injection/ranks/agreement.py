"""Find out that all ranks which train a model together draw the same layers, before they wait for each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import count
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.call_stack import running_module
from hf_layerdrop.injection.injected import placed_states, states_of
from hf_layerdrop.injection.ranks.ddp import active_ddp

RANKS_TIMEOUT = timedelta(minutes=5)

_PARAMETERS = compat.PARAMETERS.name


class _Draw(Protocol):
    @property
    def fingerprint(self) -> str:
        """What decides the draws of a stack, in words."""


class _Pact:
    """Whether the ranks agree on all injected models of a module: these share one, and a copy of them has its own."""

    reached = False


class Agreement:
    """What the ranks have found out about all draws of a model, of which each is a party.

    Which stacks a step runs may depend on the rows of a rank: a batch without images leaves the vision stack out. So
    the first stack that runs asks for all of them, at any rate, and no rank waits for a stack that another did not run.
    Several injected models of one module agree as one, for the same reason.
    """

    def __init__(self) -> None:
        self.pact = _Pact()
        self.draws: list[_Draw] = []
        self.placed = False  # whether a forward has shown beside which other injected models this one stands

    @property
    def reached(self) -> bool:
        """Whether they draw alike, until rates or seeds change."""
        return self.pact.reached

    @reached.setter
    def reached(self, reached: bool) -> None:
        self.pact.reached = reached

    def join(self, draw: _Draw) -> None:
        """Compare this draw, too."""
        self.draws.append(draw)

    def stand_beside(self, other: Agreement) -> None:
        """Agree together with the other draws of a module."""
        if other.pact is not self.pact:
            self.pact = other.pact
            self.reached = False

    def seek(self, owner: nn.Module) -> None:
        """Compare all draws with those of the other ranks, if they share the model whose stack ``owner`` runs.

        At the first forward, the module that is running tells what stands beside this model.

        Raises:
            LayerDropStateError: If a rank would draw other layers, or does not answer in time.
        """
        if self.reached:
            return
        if not self.placed:
            placed_states(running_module(owner))
            self.placed = True
        if _is_shared(owner):
            beside = [state.agreement for state in states_of(running_module(owner)).values()]
            parties = [party for party in beside if party.pact is self.pact] or [self]
            _compare([draw.fingerprint for party in parties for draw in party.draws])
            self.reached = True


def _compare(fingerprints: Sequence[str]) -> None:
    """Compare what decides the draws with the other ranks, through the store that they met in: no device waits for it.

    Every rank has to call it as often as the others.
    """
    rank, size = distributed.get_rank(), distributed.get_world_size()
    store = compat.RANKS_STORE.value()
    key = f"hf_layerdrop/{next(_comparisons)}"
    store.set(f"{key}/{rank}", "; ".join(fingerprints))
    # Each compares itself with rank 0, and rank 0 with all, so that whoever waits for whom, nobody trains on.
    for other in range(1, size) if rank == 0 else [0]:
        try:
            store.wait([f"{key}/{other}"], RANKS_TIMEOUT)
        except Exception as error:
            raise LayerDropStateError(
                f"Rank {other} did not say how it draws the layers within {RANKS_TIMEOUT}; change rates and seeds on "
                "every rank at the same step."
            ) from error
        theirs = store.get(f"{key}/{other}").decode().split("; ")
        if theirs != fingerprints:
            raise LayerDropStateError(
                f"Ranks {rank} and {other} would drop different layers, {_beyond(fingerprints, theirs)} against "
                f"{_beyond(theirs, fingerprints)}; give every rank the same config and step."
            )


_comparisons = count()


def _beyond(ones: Sequence[str], others: Sequence[str]) -> str:
    return "; ".join(one for one in ones if one not in others) or "nothing"


def _is_shared(owner: nn.Module) -> bool:
    """Tell whether ranks train this model together: by DDP, FSDP, or DeepSpeed's ZeRO-3."""
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return several and (active_ddp() is not None or _is_sharded(owner))


def _is_sharded(owner: nn.Module) -> bool:
    """Tell whether FSDP or ZeRO-3 holds a part of the weights of ``owner``."""
    samples = _unsharded.get(owner)
    if samples is not None and all(sample.stays() for sample in samples):
        return False
    sharded = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in owner.modules())
    if sharded or any(hasattr(weight, "ds_id") for weight in owner.parameters()):
        return True
    _unsharded[owner] = tuple(_samples(owner))
    return False


class _Sample:
    """A weight by which one sees that a module was sharded since: FSDP puts another in its place, ZeRO-3 marks it."""

    def __init__(self, holder: nn.Module, name: str) -> None:
        self._holder, self._name, self._weight = ref(holder), name, ref(getattr(holder, _PARAMETERS)[name])

    def stays(self) -> bool:
        """Tell whether it is in its place, as it was."""
        holder, weight = self._holder(), self._weight()
        if holder is None or getattr(holder, _PARAMETERS).get(self._name) is not weight:
            return False
        return not hasattr(weight, "ds_id")


def _samples(owner: nn.Module) -> Iterator[_Sample]:
    """Yield a few weights of ``owner``: to look at all of them takes longer than a draw."""
    places = [(module, name) for module in owner.modules() for name, _ in module.named_parameters(recurse=False)]
    for index in sorted({0, len(places) // 2, len(places) - 1}) if places else ():
        yield _Sample(*places[index])


_unsharded: WeakKeyDictionary[nn.Module, tuple[_Sample, ...]] = WeakKeyDictionary()
