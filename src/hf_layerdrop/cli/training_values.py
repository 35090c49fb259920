"""What values the flags of TrainingArguments take: their kinds, ranges and choices, known without importing torch.

Kinds and choices are read from the source of transformers. Its own parser looks at no range: a batch of no rows or a
learning rate of nan would come out in the first step, or never.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import typer

MAX_SEED = 2**32 - 1  # the largest that numpy takes

Range = tuple[str, Callable[[float], bool]]

_WORDS = {
    "bool": ("true or false", re.compile(r"true|false|yes|no|t|f|y|n|1|0", re.IGNORECASE)),
    "int": ("a whole number", re.compile(r"[+-]?\d+")),
    "float": ("a number", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE)),
}
_COUNT: Range = ("1 or more", lambda value: value >= 1)
_NO_LESS: Range = ("0 or more", lambda value: value >= 0)
_ABOVE: Range = ("above 0", lambda value: value > 0)
_SHARE: Range = ("from 0 to 1", lambda value: 0 <= value <= 1)
_DECAY: Range = ("from 0 to less than 1", lambda value: 0 <= value < 1)
_SEED: Range = (f"from 0 to {MAX_SEED}", lambda value: 0 <= value <= MAX_SEED)
_STEPS: Range = ("1 or more, or -1 to go by epochs", lambda value: value >= 1 or value == -1)
_RANGES: Mapping[str, Range] = {
    "seed": _SEED,
    "data_seed": _SEED,
    "max_steps": _STEPS,
    "num_train_epochs": _ABOVE,
    "label_smoothing_factor": _SHARE,
    "adam_beta1": _DECAY,
    "adam_beta2": _DECAY,
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _ABOVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), _NO_LESS),
    **dict.fromkeys(("neftune_noise_alpha", "eval_delay", "dataloader_num_workers"), _NO_LESS),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), _COUNT),
}


def source_of(module: str) -> str:
    """Return the source of a module of transformers, such as ``training_args``, without importing it."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """Return the values of each enumeration that an annotation of TrainingArguments can name."""
    trees = [ast.parse(source_of(module)) for module in ("trainer_utils", "training_args")]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    enums = [node for node in classes if "ExplicitEnum" in {ast.unparse(base) for base in node.bases}]
    return {node.name: tuple(_values(node)) for node in enums}


def _values(enum: ast.ClassDef) -> list[str]:
    values = [node.value for node in enum.body if isinstance(node, ast.Assign)]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


@cache
def _reporters() -> tuple[str, ...]:
    block = re.search(
        r"^INTEGRATION_TO_CALLBACK = \{(.*?)^\}", source_of("integrations.integration_utils"), re.M | re.S
    )
    return tuple(re.findall(r'"(\w+)":', block[1])) if block else ()


def check_values(name: str, values: Sequence[str], annotation: str) -> None:
    """Check the values of a flag, as the command line or a config file gives them.

    Args:
        name: A field of TrainingArguments.
        values: Its values, as words.
        annotation: How the field is annotated.

    Raises:
        typer.BadParameter: If they are too many or too few, not of its kind, out of range, or none of its choices.
    """
    kind = annotation.removesuffix(" | None")
    if len(values) > 1 and "list" not in kind:
        raise typer.BadParameter(f"{values[1]!r} belongs to no option: --{name} takes one value")
    if not values and kind != "bool":
        raise typer.BadParameter(f"--{name} needs a value")
    if kind in _WORDS:
        _check_kind(name, values, kind)
    if name == "report_to" and not {*values} & {"none", "all"}:
        _check_choice(name, values, (*_reporters(), "all", "none") if _reporters() else ())
    for part in kind.split(" | "):
        if part[:1].isupper() and part in _choices():
            _check_choice(name, values, _choices()[part])


def _check_kind(name: str, values: Sequence[str], kind: str) -> None:
    allowed, pattern = _WORDS[kind]
    if not all(pattern.fullmatch(value) for value in values):
        raise typer.BadParameter(f"--{name} is {' '.join(values)!r}; it must be {allowed}")
    if kind == "bool":
        return
    allowed, fits = _RANGES.get(name, ("", lambda value: True))
    for value in values:
        number = int(value) if kind == "int" else float(value)
        if not (isinstance(number, int) or math.isfinite(number)):
            raise typer.BadParameter(f"--{name} is {value}; it must be a finite number{', ' * bool(allowed)}{allowed}")
        if not fits(number):
            raise typer.BadParameter(f"--{name} is {value}; it must be {allowed}")


def _check_choice(name: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    for value in values:
        if allowed and value not in allowed:
            nearest = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise typer.BadParameter(f"--{name} is {value!r}; it must be one of {', '.join(allowed)}{hint}")
