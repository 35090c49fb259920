"""Read studies and experiments from the YAML files that come with the package, and check that they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from reproduction.errors import ReproductionError
from reproduction.experiment import CHARTS, METRIC, QUANTITIES, Claim, Experiment, Side
from reproduction.study import BUDGETS, SIZES, WHOLE, Arm, Data, Size, Study

_STUDIES = Path(__file__).with_name("studies")
_EXPERIMENTS = Path(__file__).with_name("experiments")

Record = TypeVar("Record")

# libyaml's, where it is there: the files of the package take it a tenth of the time.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def all_studies() -> dict[str, Study]:
    """Return the studies of the package by name."""
    return {path.stem: read_study(path) for path in sorted(_STUDIES.glob("*.yaml"))}


@cache
def all_experiments() -> dict[str, Experiment]:
    """Return the tables and figures of the package by name, tables first."""
    paths = sorted(_EXPERIMENTS.glob("*.yaml"), key=lambda path: (not path.stem.startswith("table"), path.stem))
    return {path.stem: read_experiment(path, all_studies()) for path in paths}


def find_experiment(name: str) -> Experiment:
    """Look a table or figure up.

    Raises:
        ReproductionError: If there is none of that name.
    """
    known = all_experiments()
    if name not in known:
        raise ReproductionError(f"Experiment {name!r} is unknown; choose one of {', '.join(known)}.")
    return known[name]


def read_study(path: Path) -> Study:
    """Read a study; one that is ``like`` another has what it does not say from that one.

    Raises:
        ReproductionError: If the file cannot be read, or names what there is not.
    """
    values = _with_base(path)
    given_sizes = {name: values.pop(name, None) for name in SIZES}
    sizes = {name: _size(given, f"{path.name}, {name}") for name, given in given_sizes.items() if given}
    given_arms, variants = _varied(values.pop("arms", {}), values.pop("variants", {}))
    arms = {
        name: _record(Arm, {"name": name, **given}, f"{path.name}, arm {name}") for name, given in given_arms.items()
    }
    study = _record(Study, {"name": path.stem, "arms": arms, "sizes": sizes, "variants": variants, **values}, path.name)
    for arm in arms.values():
        _check_among("budget", arm.budget, BUDGETS, f"{path.name}, arm {arm.name}")
    for size in sizes.values():
        missing = {arm.cut for arm in arms.values()} - set(size.cuts)
        if missing or WHOLE not in size.cuts:
            raise ReproductionError(f"{path.name} has no cut {(*sorted(missing), WHOLE)[0]!r}; add it under cuts.")
    return study


def read_experiment(path: Path, studies: Mapping[str, Study]) -> Experiment:
    """Read a table or figure.

    Raises:
        ReproductionError: If the file cannot be read, or names a study, an arm or a cut that there is not.
    """
    values = load_yaml(path)
    claims = tuple(_claim(given, path.name) for given in values.pop("claims", []))
    experiment = _record(Experiment, {"name": path.stem, "claims": claims, **values}, path.name)
    _check_among("chart", experiment.chart, CHARTS, path.name)
    for name in experiment.all_studies:
        _check_among("study", name, studies, path.name)
        for claim in experiment.claims_of(name):
            for side in (claim.better, claim.than):
                _check_among("arm", side.arm, studies[name].arms, path.name)
                for size in studies[name].sizes.values():
                    _check_among("cut", side.cut, size.cuts, path.name)
    known = dict.fromkeys(arm for name in experiment.all_studies for arm in studies[name].arms)
    if not experiment.arms:  # of all
        experiment = replace(experiment, arms=tuple(known))
    for arm in experiment.arms:
        _check_among("arm", arm, known, path.name)
    return experiment


def _with_base(path: Path) -> dict[str, Any]:
    values = load_yaml(path)
    base = values.pop("like", None)
    return values if base is None else _merged(_with_base(path.with_name(f"{base}.yaml")), values)


def _merged(base: Any, values: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    return {**base, **{name: _merged(base.get(name), value) for name, value in values.items()}}


def _varied(
    arms: Mapping[str, Any], variants: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, ...]]]:
    """Return every arm once for each variant, ``<arm>-<variant>``, which begins with the same variant of its source."""
    if not variants:
        return {name: given or {} for name, given in arms.items()}, {}
    varied = {}
    for name, given in arms.items():
        for variant, more in variants.items():
            own = {**(given or {}), **(more or {})}
            if own.get("source") in arms:
                own["source"] = f"{own['source']}-{variant}"
            varied[f"{name}-{variant}"] = own
    return varied, {name: tuple(f"{name}-{variant}" for variant in variants) for name in arms}


def _size(values: dict[str, Any], where: str) -> Size:
    return _record(Size, {**values, "data": _record(Data, values["data"], where)}, where)


def _claim(values: dict[str, Any], where: str) -> Claim:
    sides = {name: Side(*str(values[name]).split("@")) for name in ("better", "than")}
    _check_among("quantity", values.get("quantity", METRIC), QUANTITIES, where)
    return _record(Claim, {**values, **sides}, where)


def _record(kind: type[Record], values: Mapping[str, Any], where: str) -> Record:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        _check_among("key", name, known, where)
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ReproductionError(f"{where} lacks a key: {error}.") from error


def _check_among(what: str, name: str, known: Any, where: str) -> None:
    if name not in known:
        raise ReproductionError(f"{where} names the {what} {name!r}; choose one of {', '.join(sorted(known))}.")


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values.

    Raises:
        ReproductionError: If it cannot be read, or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReproductionError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ReproductionError(f"{str(path)!r} must hold keys and values.")
    return values
