"""The two forms of ``keep_layers`` that go by what was measured; the recommended sets of a checkpoint hold it.

- ``"best:6"``: the best-scored set of that depth; by stack ``"encoder=best:6;decoder=best:3"``;
- ``"fastest:0.99"``: of the sets within 1 % of the whole model's score, the fastest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import KeepLayersError

if TYPE_CHECKING:
    from hf_layerdrop.checkpoints.recommended import RecommendedSet, RecommendedSets
    from hf_layerdrop.checkpoints.recommended_file import Recommended

_ASKS = re.compile(r"\s*(best|fastest)\s*(?::(.*))?")
_DEPTH = re.compile(r"[0-9]{1,9}")
_SHARE = re.compile(r"[0-9]{0,3}\.?[0-9]{0,15}")


@dataclass(frozen=True)
class Measured:
    """A set that was chosen among measured ones; the provenance of a cut says how, and what it scored."""

    keep_layers: Mapping[str, tuple[int, ...]]
    strategy: str
    metric: str
    score: float | None


def asks_for_measured(spec: Any) -> bool:
    """Tell whether a specification, or one of its parts, goes by what was measured."""
    if isinstance(spec, str):
        return any(_ASKS.fullmatch(part.rpartition("=")[2]) for part in spec.split(";"))
    return isinstance(spec, Mapping) and any(isinstance(one, str) and _ASKS.fullmatch(one) for one in spec.values())


def asks_for_fastest(spec: Any) -> bool:
    """Tell the form that is not of one stack."""
    asked = _ASKS.fullmatch(spec) if isinstance(spec, str) else None
    return asked is not None and asked[1] == "fastest"


def measured_set(by_stack: Mapping[str, Any], depths: Mapping[str, int], recommended: Recommended | None) -> Measured:
    """Return the set that a specification by stack asks for.

    Args:
        by_stack: What is asked of each stack; those not named stay whole.
        depths: Number of layers of each stack of the model.
        recommended: Where the sets are; they are read when they are needed.

    Raises:
        CheckpointError: The recommended sets cannot be read.
        KeepLayersError: There are none, none that fits, or what is asked for cannot be read.
    """
    asked = {stack: by_stack.get(stack) for stack in depths}
    rule = str(next(spec for spec in asked.values() if asks_for_measured(spec)))
    if asks_for_fastest(rule):
        share = _share(rule, asked)
        table = _table(rule, recommended, depths)
        return _measured(table, table.fastest(share), rule)
    wanted = {stack: _depth(spec, stack, depths[stack]) for stack, spec in asked.items()}
    table = _table(rule, recommended, depths)
    return _measured(table, table.best(wanted), rule)


def _share(rule: str, asked: Mapping[str, Any]) -> float:
    if any(spec != rule for spec in asked.values()):
        raise KeepLayersError(
            f"keep_layers asks for {rule.strip()[:60]!r} of one stack, but how fast a model is goes by all of them: "
            "write 'fastest:0.99' alone, or a depth of each stack, such as 'best:6'."
        )
    text = _argument(rule)
    share = float(text) if text.strip(".") and _SHARE.fullmatch(text) else 0.0
    if not 0 < share <= 1:
        raise KeepLayersError(
            f"keep_layers is {rule.strip()[:60]!r}: give the share of the whole model's score that has to be left, "
            "above 0 and at most 1, such as 'fastest:0.99'."
        )
    return share


def _depth(spec: Any, stack: str, of: int) -> int:
    if spec is None or (isinstance(spec, str) and spec.strip() == "all"):
        return of
    asked = isinstance(spec, str) and _ASKS.fullmatch(spec)
    if not asked or asked[1] != "best":
        raise KeepLayersError(
            f"keep_layers asks for the best measured set and for {str(spec)[:60]!r} of the stack {stack!r}: ask for a "
            f"depth of each stack, such as 'best:{max(1, of // 2)}', or for none of them."
        )
    text = _argument(spec)
    depth = int(text) if _DEPTH.fullmatch(text) else 0
    if not 1 <= depth <= of:
        raise KeepLayersError(
            f"keep_layers is {spec.strip()[:60]!r}, but the stack {stack!r} has {of} layers: write 'best:n' with n "
            f"from 1 to {of}."
        )
    return depth


def _argument(rule: str) -> str:
    return rule.partition(":")[2].strip()


def _table(rule: str, recommended: Recommended | None, depths: Mapping[str, int]) -> RecommendedSets:
    from hf_layerdrop.checkpoints.recommended import RecommendedSets
    from hf_layerdrop.checkpoints.recommended_file import read_recommended

    if recommended is None:
        raise KeepLayersError(
            f"keep_layers is {rule.strip()[:60]!r}, which goes by the recommended sets of a checkpoint, and none is at "
            "hand here: give recommended=, its folder or Hub id, or name the layers."
        )
    if isinstance(recommended, str | os.PathLike):
        recommended = read_recommended(recommended)
    table = recommended if isinstance(recommended, RecommendedSets) else recommended()
    table.check(depths)
    return table


def _measured(table: RecommendedSets, one: RecommendedSet, rule: str) -> Measured:
    strategy = rule.strip() if one.chosen_by == "given" else one.chosen_by  # somebody named the layers: measuring chose
    kept = {stack: tuple(layers) for stack, layers in one.keep_layers.items()}
    return Measured({stack: kept[stack] for stack in table.depths}, strategy, table.metric, table.score(one))
