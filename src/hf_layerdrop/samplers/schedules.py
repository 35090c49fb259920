"""Drop rates as plain numbers: how they are shaped over depth, and how they move over training.

Over depth (``SHAPES``), each function returns one rate a layer, the largest being ``rate``. Over training
(``SCHEDULES``), each function maps the share of training that is done, in [0, 1], to a factor in [0, 1] by which the
configured rates are scaled.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from numbers import Real

from hf_layerdrop.errors import LayerDropConfigError

Schedule = Callable[[float], float]


def uniform(rate: float, depth: int) -> list[float]:
    """Give every layer the same rate, as the paper does (3.2.1)."""
    return [rate] * depth


def linear(rate: float, depth: int) -> list[float]:
    """Rise from 0 at the first layer to ``rate`` at the last, as stochastic depth (Huang et al., 2016) does."""
    return [rate * layer / max(depth - 1, 1) for layer in range(depth)]


def exponential(rate: float, depth: int) -> list[float]:
    """Rise from 0 to ``rate`` as ``2^(l / (N - 1)) - 1``, as LayerSkip (Elhoushi et al., 2024) does."""
    return [rate * (2 ** (layer / max(depth - 1, 1)) - 1) for layer in range(depth)]


def alternating(rate: float, depth: int) -> list[float]:
    """Give every second layer the rate and the others none, for a cut to ``"::2"`` (Elhoushi et al., 2026)."""
    return [rate * (layer % 2) for layer in range(depth)]


SHAPES: dict[str, Callable[[float, int], list[float]]] = {
    "uniform": uniform,
    "linear": linear,
    "exponential": exponential,
    "alternating": alternating,
}


def constant(progress: float) -> float:
    """Use the configured rates from the first step to the last, as the paper does."""
    return 1.0


def linear_ramp(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """Rise in a straight line from 0 at ``start`` to 1 at ``end``, both shares of training."""
    return min(max((progress - start) / (end - start), 0.0), 1.0)


def cosine_ramp(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """Rise along half a cosine wave from 0 at ``start`` to 1 at ``end``, both shares of training."""
    return (1 - math.cos(math.pi * linear_ramp(progress, start=start, end=end))) / 2


def step(progress: float, *, at: float = 0.5) -> float:
    """Drop nothing before the share ``at`` of training, then use the configured rates."""
    return 1.0 if progress >= at else 0.0


def falling(progress: float) -> float:
    """Fall in a straight line from the configured rates to 0, as in the pretraining of Elhoushi et al. (2026)."""
    return 1 - progress


def early(progress: float, *, share: float = 0.5) -> float:
    """Use the configured rates in the first share of training alone, for a model that underfits (Liu et al., 2023)."""
    return 1.0 if progress < share else 0.0


def late(progress: float, *, share: float = 0.5) -> float:
    """Use the configured rates in the last share of training alone, for a model that overfits (Liu et al., 2023)."""
    return step(progress, at=1 - share)


def share_kept(time: float, *, theta: float = 0.5, gamma: float = 0.001) -> float:
    """Return DeepSpeed's progressive layer drop share of layers kept, ``(1 - theta) exp(-gamma t) + theta``."""
    return (1 - theta) * math.exp(-gamma * time) + theta


def progressive_layer_drop(progress: float, *, theta: float = 0.5, gamma: float = 10.0) -> float:
    """Return the rate of progressive layer drop (Zhang and He, 2020), ``1 - theta(t)``, with t the share of training.

    The result is a rate, not a factor: use it with configured rates of 1, or with configured rates that shape it over
    depth. DeepSpeed counts t in steps: its gamma is ours divided by the number of steps.
    """
    return 1 - share_kept(progress, theta=theta, gamma=gamma)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear_ramp,
    "cosine": cosine_ramp,
    "step": step,
    "falling": falling,
    "early": early,
    "late": late,
    "pld": progressive_layer_drop,
}


def read_schedule(text: str) -> Schedule:
    """Read a schedule with its numbers from one text: ``falling``, ``linear:start=0,end=0.5``, ``early:share=0.3``.

    Raises:
        LayerDropConfigError: If it cannot be read, or `make_schedule` refuses it.
    """
    name, _, numbers = text.partition(":")
    pairs = [part.partition("=") for part in numbers.split(",") if part.strip()]
    try:
        values = {number.strip(): float(value) for number, _, value in pairs}
    except ValueError:
        raise LayerDropConfigError(
            f"The schedule is {text!r}; write its numbers like linear:start=0,end=0.5."
        ) from None
    return make_schedule(name.strip(), **values)


def make_schedule(name: str, **numbers: float) -> Schedule:
    """Choose a schedule by its name and fix its numbers; the result takes the share of training that is done.

    Raises:
        LayerDropConfigError: If there is no schedule of that name, if it does not take one of the numbers, or if a
            number is out of its range.
    """
    if name not in SCHEDULES:
        raise LayerDropConfigError(f"Schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    function = SCHEDULES[name]
    allowed = [parameter for parameter in inspect.signature(function).parameters if parameter != "progress"]
    for number, value in numbers.items():
        if number not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no numbers"
            raise LayerDropConfigError(f"Schedule {name!r} does not take {number!r}; it {takes}.")
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0 or (number != "gamma" and value > 1):
            limits = "0 or more" if number == "gamma" else "from 0 to 1"
            raise LayerDropConfigError(f"Schedule {name!r} got {number}={value!r}; it must be a number {limits}.")
    if numbers.get("start", 0.0) >= numbers.get("end", 1.0):
        raise LayerDropConfigError(
            f"Schedule {name!r} starts at {numbers.get('start', 0.0)} and ends at "
            f"{numbers.get('end', 1.0)}; start must be less."
        )
    return partial(function, **numbers)
