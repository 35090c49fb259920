"""What the walk tries beside the main class of a type: other heads, other settings, and a model's own dice."""

from __future__ import annotations

import copy
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import LayerDropConfig, inject_layerdrop, prune_layers
from hf_layerdrop.architectures.expressible import settings_of
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.pruning.loading import load_plain
from hf_layerdrop.pruning.prune import sub_network

from .checks import CheckFailedError, differ, own_config, require, require_equal, stacks_that_run
from .shrinking import DEPTH, settings_to_try, tiny_config
from .tiny import CannotBuildError, PlainFailsError, Tiny, build_tiny, in_short, model_class

DRAWS = "draws of its own at rate 0"
Verdict = dict[str, str]
_ON_LAST = re.compile(
    r"(Classification|QuestionAnswering\w*|MultipleChoice|MaskedLM|PreTraining|Prediction|Projection)$"
)

# How modules that are alike may differ all the same: what they were made from, or hold while they run, as BigBird holds
# the attention that the length of its last inputs called for.
_OF_NO_ACCOUNT = {
    "training",
    "name_or_path",
    "warnings_issued",
    "gradient_checkpointing",
    "p",
    "layers_are_rescaled",
    "attention_type",
}


def heads_of(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """Return the model classes that have a config of this class, the main one last.

    Left out are those that put a layer on the last hidden states of text.
    """
    main = model_class(copy.deepcopy(config))
    module = sys.modules[main.__module__]
    named = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    found = [
        cls
        for cls in named
        if isinstance(cls, type)
        and issubclass(cls, PreTrainedModel)
        and cls.config_class is type(config)
        and not cls.__name__.endswith("PreTrainedModel")
        and cls is not main
        and not (cls.main_input_name == "input_ids" and _ON_LAST.search(cls.__name__))
    ]
    return [*found, main]


def examine_heads(model_type: str) -> dict[str, Verdict]:
    """Try every other class of a type."""
    classes = heads_of(tiny_config(model_type))
    return {cls.__name__: _verdict(lambda cls=cls: check_cuts(build_tiny(model_type, cls))) for cls in classes}


def examine_settings(model_type: str) -> dict[str, Verdict]:
    """Try the main class of a type with other settings, one at a time."""
    tried = settings_to_try(tiny_config(model_type))
    return {
        f"{name}={value}": _verdict(lambda s={name: value}: check_cuts(build_tiny(model_type, **s)))
        for name, value in tried.items()
    }


def examine_dice(model_type: str) -> Verdict:
    """Tell whether a forward in training draws of its own, with and without LayerDrop at rate 0."""
    return _verdict(lambda: check_dice(model_type))


def _verdict(check: Callable[[], str]) -> Verdict:
    notes = _Notes()
    logging.getLogger("hf_layerdrop").addHandler(notes)
    try:
        found = {"status": "supported", "reason": check()}
    except UnsupportedModelError as error:
        found = {"status": "refused", "reason": str(error)}
    except CheckFailedError as error:
        found = {"status": "failed", "reason": str(error)}
    except Exception as error:
        kind = "not buildable" if isinstance(error, CannotBuildError | PlainFailsError) else "failed"
        found = {"status": kind, "reason": in_short(error)}
    finally:
        logging.getLogger("hf_layerdrop").removeHandler(notes)
    return {**found, "warned": "; ".join(notes.texts)} if notes.texts else found


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "could not be tried" in record.getMessage():
            self.texts.append(record.getMessage())


def check_cuts(tiny: Tiny) -> str:
    """Compare cuts in memory with what is reloaded, and with the whole model whose other layers hand their input on.

    Raises:
        UnsupportedModelError: If every cut is refused.
        CheckFailedError: If two differ.
    """
    refused: UnsupportedModelError | None = None
    ran = stacks_that_run(tiny)
    if not ran:
        raise CannotBuildError("no inputs were found that run its layers")
    stacks = find_stacks(tiny.model)
    enough = 2 if any(stack.depth > DEPTH for stack in stacks.values()) else 1  # with taps, say
    done = 0
    for kept in _cuts(tiny):
        try:
            cut = prune_layers(tiny.copy(), kept)
        except UnsupportedModelError as error:
            refused = refused or error
            continue
        _compare_cut(tiny, kept, cut)
        done += 1
        if done == enough:
            break
    if not done and refused is not None:
        raise refused
    missing = sorted(set(stacks) - set(ran))
    notes = [f"not run: {', '.join(missing)}"] * bool(missing) + [f"some cuts are refused: {refused}"] * bool(refused)
    return "; ".join(notes)


def _cuts(tiny: Tiny) -> Iterator[dict[str, list[int]]]:
    ran, stacks = stacks_that_run(tiny), find_stacks(tiny.model)
    depth = max(stacks[name].depth for name in ran)
    patterns = [[0, 2], [1, 3], *([layer for layer in range(depth) if layer != left] for left in (1, 4, 0, 3, 2, 5))]
    for pattern in patterns:
        kept = {
            name: [layer for layer in pattern if layer < stack.depth] or [0]
            if name in ran
            else list(range(stack.depth))
            for name, stack in stacks.items()
        }
        if any(len(layers) < stacks[name].depth for name, layers in kept.items()):
            yield kept


def _compare_cut(tiny: Tiny, kept: dict[str, list[int]], cut: PreTrainedModel) -> None:
    said = f"cut to {kept}"
    expected = tiny.outputs(copy.deepcopy(cut).eval())
    with sub_network(whole := tiny.copy(), kept):
        require_equal(tiny.outputs(whole), expected, f"{said}: the sub-network in place differs from the cut model")
    dropping = tiny.copy().train()
    stacks = find_stacks(dropping)
    rates = {n: [float(i not in kept[n]) for i in range(stack.depth)] for n, stack in stacks.items()}
    inject_layerdrop(dropping, LayerDropConfig(rates))
    found = tiny.outputs(dropping)
    require_equal(found, tiny.outputs(copy.deepcopy(cut).train()), f"{said}: dropped layers differ from the cut model")
    again = _reloaded(cut)
    if _other_tensors(again, cut) and _other_tensors(_reloaded(tiny.model), tiny.model):
        raise PlainFailsError("plain transformers reloads other weights than it saved, cut or not")
    require(not _other_tensors(again, cut), f"{said}: the reloaded model has other tensors")
    require_equal(tiny.outputs(copy.deepcopy(again).eval()), expected, f"{said}: the reloaded model differs")
    require_same_settings(cut, again)
    with tempfile.TemporaryDirectory() as folder:
        tiny.model.save_pretrained(folder)
        config = own_config(cut, folder)
        loaded = load_plain(type(cut), folder, keep_layers=kept, attn_implementation="eager", **config)
    found = tiny.outputs(copy.deepcopy(loaded).eval())
    require_equal(found, expected, f"{said}: keep_layers at load gives another model")


def _reloaded(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, attn_implementation="eager", **own_config(model, folder))


def _other_tensors(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    found, expected = model.state_dict(), other.state_dict()
    return differ(found, expected) or differ(expected, found)


def require_same_settings(cut: nn.Module, again: nn.Module) -> None:
    """Raise unless all modules of a model that was cut in memory hold the plain values that the reloaded ones hold."""
    parts = dict(again.named_modules())
    for path, part in cut.named_modules():
        if path not in parts:  # the weights are compared elsewhere: what is left are parts that a forward has exchanged
            continue
        found, expected = settings_of(part), settings_of(parts[path])
        for name in (found.keys() & expected.keys()) - _OF_NO_ACCOUNT:
            same = found[name] == expected[name] or found[name] != found[name]
            require(same, f"{path}.{name} is {found[name]!r:.80} in memory and {expected[name]!r:.80} reloaded")


def check_dice(model_type: str) -> str:
    """Raise if a training step at our rate 0 depends on the global generators; tell which fields it draws by."""
    fields = native_fields(tiny_config(model_type))
    tiny = build_tiny(model_type, **fields)
    plain = tiny.copy().train()
    injected = inject_layerdrop(tiny.copy().train(), 0.0)
    require(not _depends_on_dice(injected, tiny), DRAWS)
    if not _depends_on_dice(plain, tiny):
        return f"not seen to draw by {', '.join(_names(fields))}" if fields else ""
    return f"its own LayerDrop: {', '.join(_names(fields))}"


def _depends_on_dice(model: PreTrainedModel, tiny: Tiny) -> bool:
    first = tiny.outputs(model)
    others = [tiny.outputs(model, seed) for seed in (1, 2, 3)]
    return any(differ(first, other) or differ(other, first) for other in others)


def native_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a config, and of its parts, that hold the rate of a model's own LayerDrop, at one half."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            if inner := native_fields(value):
                found[name] = {**value.to_dict(), **inner}
        elif re.search(r"layer_?drop", name) and isinstance(value, int | float):
            found[name] = 0.5
    return found


def _names(fields: dict[str, Any]) -> list[str]:
    return [
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in fields.items()
        for inner in ([i for i in value if re.search(r"layer_?drop", i)] if isinstance(value, dict) else [name])
    ]
