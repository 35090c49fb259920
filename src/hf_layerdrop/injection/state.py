"""What an injected model knows: its config, the draws of its stacks, and what was learned of their rates.

A plain Python object that hangs on the model as an attribute: nothing of it is in the state dict, and all of it is
copied and pickled with the model. What one stack draws stands in `stack_draw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import finalize

import torch

from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.ranks.agreement import Agreement
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.depth_list import describe
from hf_layerdrop.samplers.draws import SAMPLER_VERSION
from hf_layerdrop.samplers.learned.learner import RateLearner
from hf_layerdrop.samplers.schedules import Schedule, read_schedule


class LayerDropState:
    """All of it for one model: the config, a draw for each stack, and what has to be put back on removal.

    Attributes:
        configured: The rates that a schedule scales, by stack: those of the config, or the last that were set.
        was_set: Whether they were set since LayerDrop was injected.
        place: Where the model stands among the other injected models of a module; empty if it is the only one.
        next_step: The step after the last that began, with which the next training goes on.
        sampler_version: By which version of the samplers it draws: what was begun with an old one is ended with it.
        schedule: How the rates move over training, if the config says so.
    """

    def __init__(
        self,
        config: LayerDropConfig,
        depths: Mapping[str, int],
        groups: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> None:
        """Prepare the draws; ``groups`` says by stack and structure how many parts each layer has that are dropped."""
        self.config = config
        self.agreement = Agreement()
        self.draws = {
            draw.name: draw
            for name, rates in config.rates_for(depths).items()
            for draw in _draws_of(
                name,
                rates,
                config,
                (groups or {}).get(name, {}),
                has_sibling=len(depths) > 1,
                agreement=self.agreement,
            )
        }
        self.depths = dict(depths)
        self.configured = self.rates
        self.was_set = False
        self.place = ""
        self._beside = 1  # how many models the place tells apart
        self.micro_step = self.next_step = 0
        self.sampler_version = SAMPLER_VERSION
        self.schedule: Schedule | None = None if config.schedule is None else read_schedule(config.schedule)
        self.originals: dict[str, Any] = {}
        self.lent: dict[str, tuple[int, ...]] = {}  # by stack, layers that others borrow from
        self.learner: RateLearner | None = None
        if config.sampler == "learned":
            always_kept = {name: config.always_kept(name, depth) for name, depth in depths.items()}
            self.learner = RateLearner(self.rates, always_kept)
            for draw in self.draws.values():
                draw.learner = self.learner
        self.set_seed(config.seed if config.seed is not None else 0)
        note_living(self)

    def __repr__(self) -> str:
        next_step = next(iter(self.draws.values())).step if self.draws else 0
        return f"LayerDropState({'; '.join(map(str, self.draws.values()))}; step {next_step})"

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied within a block: the copy would never hear of its end, and drop nothing for ever.

        Raises:
            LayerDropStateError: If the model is a sub-network for the length of a block.
        """
        if any(draw.paused or draw.held is not None for draw in self.draws.values()):
            raise LayerDropStateError(
                "A model in which LayerDrop is injected was copied, or pickled, while it is a sub-network for the "
                "length of a with block, whose end the copy would not see; copy it outside of the block, and cut the "
                "copy by prune_layers."
            )
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be known to Trainer as a copy, and out of a pickle."""
        self.__dict__.update(state)
        note_living(self)

    @property
    def rates(self) -> dict[str, list[float]]:
        """The rates in use, by stack, one a layer."""
        return {draw.stack: list(draw.rates) for draw in self.draws.values()}

    @property
    def parts(self) -> list[Any]:
        """All objects whose attributes say what is drawn."""
        return [self, *self.draws.values(), *([self.learner] if self.learner is not None else [])]

    @property
    def drops(self) -> bool:
        """Whether any rate is above 0."""
        return any(any(rates) for rates in self.rates.values())

    def stand_at(self, place: str, *, beside: Sequence[LayerDropState]) -> None:
        """Draw apart from the other injected models of a module, itself included, and agree with them.

        The place in the module is then a part of the counter; a model that stands alone draws as it always did. Where
        it was found among more models before, it keeps that place: a part of a module is stepped, and not moved.
        """
        if len(beside) < max(self._beside, 2):
            return
        self._beside = len(beside)
        self.agreement.stand_beside(beside[0].agreement)
        self._use_place(place)

    def _use_place(self, place: str) -> None:
        if place != self.place:
            self.place = place
            self.agreement.reached = False
            for draw in self.draws.values():
                draw.place = place

    def use_sampler_version(self, version: int) -> None:
        """Draw as this version of the samplers did.

        Raises:
            LayerDropStateError: If this version of the package does not know it.
        """
        if version > SAMPLER_VERSION:
            raise LayerDropStateError(
                f"The checkpoint draws its layers with version {version} of the samplers, but this hf_layerdrop knows "
                f"them up to version {SAMPLER_VERSION}; update it."
            )
        self.sampler_version = version
        for draw in self.draws.values():
            draw.use_sampler_version(version)

    def draws_of(self, stack: str) -> list[StackDraw]:
        """Return the draws of a stack, one for each structure."""
        return [draw for draw in self.draws.values() if draw.stack == stack]

    def set_rates(self, rates: Mapping[str, Sequence[float]]) -> None:
        """Use these rates, one a layer, in the stacks that are named; where rates are learned, hold their mean."""
        self.was_set = True
        self.configured = {**self.configured, **{name: list(values) for name, values in rates.items()}}
        if self.learner is not None:
            self.learner.set_target(rates)
            self._use_learned_rates(agreed=False)
            return
        for name, values in rates.items():
            for draw in self.draws_of(name):
                draw.set_rates(values)

    def scale_rates(self, factor: float) -> None:
        """Use the rates that were set, or learned, times ``factor``; every rank has to do the same."""
        for draw in self.draws.values():
            draw.unscheduled, draw.lowered = False, factor < 1
        if self.learner is not None:
            self.learner.factor = factor
            self._use_learned_rates()
            return
        for draw in self.draws.values():
            draw.set_rates([rate * factor for rate in self.configured[draw.stack]], agreed=True)

    def follow_schedule(self, progress: float) -> None:
        """Use the rates of this share of training, from 0 to 1, if the config names a schedule."""
        if self.schedule is not None:
            self.scale_rates(self.schedule(progress))

    def rates_to_save(self) -> dict[str, list[float]]:
        """Return the rates that are written into the config: what a schedule scales, or what was learned."""
        return self.learned().get("rates") or {name: list(rates) for name, rates in self.configured.items()}

    def learn(self, loss: torch.Tensor, *, step_ended: bool) -> None:
        """Show the loss of a micro-step to what learns the rates, which are fixed until the step has ended."""
        if self.learner is None:
            raise LayerDropStateError(
                f"The rates of this model are not learned, since its sampler is {self.config.sampler!r}; inject "
                "LayerDropConfig(rate, sampler='learned') to learn them."
            )
        self.learner.note_loss(loss)
        if step_ended:
            self.learner.end_step()
            self._use_learned_rates()

    def learned(self) -> dict[str, dict[str, list[float]]]:
        """Return what is written into the config of a model whose rates are learned; empty for any other."""
        if self.learner is None:
            return {}
        rates = {name: self.learner.rates(name, scheduled=False) for name in self.draws}
        shares = {name: self.learner.shares(name) for name in self.draws}
        return {"rates": rates, "learned_rates": rates, "learned_shares": shares}

    def load_learned(self, saved: Mapping[str, Any]) -> None:
        """Go on learning from what the learner's ``state_dict`` returned."""
        if self.learner is not None:
            self.learner.load_state_dict(saved)
            self._use_learned_rates(agreed=False)

    def _use_learned_rates(self, *, agreed: bool = True) -> None:
        """Use the learned rates from the next forward on; every rank has learned the same ones."""
        if self.learner is not None:
            for name, draw in self.draws.items():
                draw.set_rates(self.learner.rates(name), agreed=agreed)

    def begin_step(self, step: int, micro_step: int = 0) -> None:
        """Set the counter of every stack to the first forward of a step, or of a micro-step of it."""
        if self.learner is not None and micro_step == 0:
            self.learner.check_losses_come()
        self.micro_step, self.next_step = micro_step, step + 1
        for draw in self.draws.values():
            draw.begin_step(step, micro_step)

    def take_log(self) -> dict[str, float]:
        """Return the mean rate in use, and the mean number of layers that a forward has run since the last call."""
        layers = sum(len(draw.rates) for draw in self.draws.values())
        log = {"layerdrop_rate": sum(draw.mean_rate * len(draw.rates) for draw in self.draws.values()) / layers}
        for name, draw in self.draws.items():
            key = f"layerdrop_{'' if len(self.depths) == 1 else draw.stack + '_'}{draw.structure}s_used"
            log[key] = draw.layers_run / draw.forwards if draw.forwards else float(draw.depth)
            draw.forwards = draw.layers_run = 0
            if self.learner is not None:
                log |= {f"layerdrop_{name}_rate_{layer}": rate for layer, rate in enumerate(draw.rates)}
        return log

    def set_seed(self, seed: int) -> None:
        """Draw from this seed from now on."""
        self.seed = seed
        for draw in self.draws.values():
            draw.set_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the counter has come, as JSON values: what a raw training loop saves and restores."""
        return {
            "seed": self.seed,
            "rates": self.rates,
            "configured_rates": self.configured,
            "sampler_version": self.sampler_version,
            "place": self.place,
            "drawn_from": self._drawn_from,
            "counters": {name: [draw.step, draw.micro_step, draw.next_forward] for name, draw in self.draws.items()},
            **({"learned": self.learner.state_dict()} if self.learner is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, so that the next draws are those of the run that went on.

        Raises:
            LayerDropConfigError: If the state is of a model with other stacks or depths.
        """
        self.check_fits(state)
        self._check_drawn_from(state)
        self.use_sampler_version(state.get("sampler_version", 1))
        self.set_seed(state["seed"])
        self._use_place(state.get("place") or self.place)
        configured = {**self.configured, **state.get("configured_rates", {})}
        if self.learner is None:  # which has its own target, and what a schedule scales it by
            self.set_rates(state["rates"])
        self.configured = configured
        self.load_learned(state.get("learned", {}))
        for name, draw in self.draws.items():
            draw.go_to(*state["counters"][name])
            self.next_step = draw.step + 1

    def to_resume(self) -> dict[str, Any]:
        """Return what a resumed run cannot know by itself, as JSON values; its trainer knows the step."""
        saved: dict[str, Any] = {
            "depths": self.depths,
            "sampler_version": self.sampler_version,
            "drawn_from": self._drawn_from,
        }
        if self.learner is not None:
            return {**saved, "learned": self.learner.state_dict()}
        return {**saved, "set_rates": self.configured} if self.was_set else saved

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_resume` returned; an older version kept less, and had another sampler.

        Raises:
            LayerDropStateError: If it is of a model with other depths: trainers load the layers that fit.
        """
        if (depths := saved.get("depths", self.depths)) != self.depths:
            raise LayerDropStateError(
                f"The checkpoint that this run goes on with is of stacks {depths}, but the model has {self.depths}; "
                "continue with the model that the run began with."
            )
        self._check_drawn_from(saved)
        if "depths" in saved:
            self.use_sampler_version(saved.get("sampler_version", 1))
        if learned := saved.get("learned"):
            self.load_learned(learned)
        if set_rates := saved.get("set_rates"):
            self.set_rates(set_rates)

    @property
    def _drawn_from(self) -> str:
        depths = self.config.depths
        drawn = self.config.sampler if depths is None else f"{self.config.sampler} of {describe(depths)}"
        drawn += " by row" if self.config.granularity == "row" else ""
        return f"{drawn}, nested" if self.config.nested else drawn

    def _check_drawn_from(self, saved: Mapping[str, Any]) -> None:
        if (other := saved.get("drawn_from", self._drawn_from)) != self._drawn_from:
            raise LayerDropStateError(
                f"The saved LayerDrop state draws by the sampler {other}, but this model by {self._drawn_from}; inject "
                "LayerDrop as in the run that it is of."
            )

    def check_fits(self, state: Mapping[str, Any]) -> None:
        """Refuse a saved state that is of another model.

        Raises:
            LayerDropConfigError: If it is of other stacks, depths or draws, or no state at all.
        """
        if missing := {"seed", "rates", "counters"} - set(state):
            raise LayerDropConfigError(
                f"The saved LayerDrop state has no {min(missing)!r}; give what its state_dict() returned."
            )
        depths = {name: len(rates) for name, rates in state["rates"].items()}
        if depths != self.depths:
            raise LayerDropConfigError(
                f"The saved LayerDrop state is of stacks {depths}, but this model has {self.depths}."
            )
        if self.learner is not None and "learned" not in state:
            raise LayerDropConfigError(
                "The saved LayerDrop state has no learned rates; give what state_dict() returned with "
                "sampler='learned', or inject another sampler."
            )
        if state["counters"].keys() != self.draws.keys():
            raise LayerDropConfigError(
                f"The saved LayerDrop state is of draws for {', '.join(state['counters'])}, but this model draws for "
                f"{', '.join(self.draws)}; inject the structure that it was trained with."
            )


def _draws_of(
    name: str, rates: Sequence[float], config: LayerDropConfig, groups: Mapping[str, Sequence[int]], **shared: Any
) -> list[StackDraw]:
    """Return the draws of a stack, one for each structure; that of whole layers comes first."""
    layers = [StackDraw(name, rates, config, **shared)] if "layer" in config.structures else []
    within = layers[0] if layers else None
    return layers + [
        StackDraw(name, rates, config, structure=structure, groups=counts, within=within, **shared)
        for structure, counts in groups.items()
    ]


# Those that live, by id, each with what takes it out again.
_living: dict[int, finalize] = {}


def note_living(state: LayerDropState) -> None:
    """Let Trainer tell its steps to injected models while there are any."""
    from hf_layerdrop.injection.step_callback import register_with_trainer  # imports Trainer, which only training needs

    end = _living[id(state)] = finalize(state, forget, id(state))
    end.atexit = False
    register_with_trainer()


def forget(state_id: int) -> None:
    """Let go of a state that is gone, or was removed from its model; with the last one, Trainer is as before."""
    from hf_layerdrop.injection.step_callback import unregister_from_trainer

    if (end := _living.pop(state_id, None)) is not None:
        end.detach()
    if not _living:
        unregister_from_trainer()
