"""A tiny model of any type, with inputs that run it."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from .batches import Batch, candidate_batches, feature_calls
from .shrinking import Way, tiny_config

_HEADS = (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)
MOST_PARAMETERS = 80_000_000


class PlainFailsError(Exception):
    """Plain transformers fails in the same way, without LayerDrop."""


class CannotBuildError(Exception):
    """No tiny model of the type, or no inputs for it, were found."""


@dataclass
class Tiny:
    """A model, the batch that it takes, and which modules run on it."""

    model: PreTrainedModel
    batch: Batch
    ran: set[str] = field(default_factory=set)
    calls: dict[str, Batch] = field(default_factory=dict)  # methods and submodels that run further parts: their inputs

    @property
    def generates(self) -> bool:
        """Whether its class is one of the heads that generate text."""
        mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
        classes = [mapping.get(type(self.model.config), None) for mapping in mappings]
        return type(self.model) in classes and self.model.can_generate() and "input_ids" in self.batch

    def copy(self) -> PreTrainedModel:
        """Return a copy of the model."""
        return copy.deepcopy(self.model)

    def outputs(self, model: PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return every floating tensor that ``model`` gives for the batch, and for the further parts."""
        found = outputs_of(model, self.batch, seed=seed)
        for method, batch in self.calls.items():
            found |= outputs_of(attrgetter(method)(model), batch, name=method, seed=seed)
        return found


def build_tiny(model_type: str, cls: type[PreTrainedModel] | None = None, **settings: Any) -> Tiny:
    """Build a tiny model and find inputs for it: of the class that generates, or the base model, or of a given class.

    ``settings`` are fields of the config to set before. A given class gets a config whose taps can be renumbered.

    Raises:
        CannotBuildError: If one of the two fails; the message says why.
    """
    problems = []
    head_alone = model_type not in modeling_auto.MODEL_MAPPING_NAMES
    for way in Way:
        try:
            config = tiny_config(model_type, way, taps=cls is not None or head_alone)
            if settings:
                config = type(config).from_dict({**config.to_dict(), **settings})
            model = build(cls or model_class(config), config)
            tiny = Tiny(model, *find_batch(model))
        except Exception as error:
            problems.append(error)
            continue
        add_calls(tiny)
        return tiny
    raise CannotBuildError(in_short(problems[0])) from problems[0]


def add_calls(tiny: Tiny) -> None:
    """Add what runs parts of a composite model which its plain inputs leave out: methods, else the parts themselves."""
    calls = chain(feature_calls(tiny.model), part_calls(tiny))
    for method, batch in calls:
        if method in tiny.calls:
            continue
        try:
            ran = modules_that_run(tiny.model, batch, method)
        except Exception:
            continue
        if not ran <= tiny.ran:
            tiny.calls[method] = batch
            tiny.ran |= ran


def part_calls(tiny: Tiny) -> Iterator[tuple[str, Batch]]:
    """Yield submodels none of whose modules has run so far, the outermost first, with inputs to try."""
    for name, part in tiny.model.named_modules():
        if name and isinstance(part, PreTrainedModel) and not any(f"{ran}.".startswith(f"{name}.") for ran in tiny.ran):
            try:
                yield from ((name, batch) for batch in candidate_batches(part))
            except Exception:  # what its config says does not let inputs be made
                continue


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class with a head that generates, if the type has one, else the base model, else one with a head."""
    heads = [mapping for name, mapping in vars(modeling_auto).items() if re.fullmatch(r"MODEL_FOR_\w+_MAPPING", name)]
    for mapping in (*_HEADS, *heads):
        found = mapping.get(type(config), None)
        if found is not None:
            if mapping is MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "is_decoder", True) is False:
                config.is_decoder = True
            return found[0] if isinstance(found, tuple) else found
    raise CannotBuildError("AutoModel has no class for it")


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model whose every weight, biases and norms included, differs from its default by a deviation of 0.2."""
    with torch.device("meta"):
        if (count := sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())) > MOST_PARAMETERS:
            raise CannotBuildError(f"it still has {count:,} parameters")
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()  # as loading leaves it
    return model.eval()


def find_batch(model: PreTrainedModel) -> tuple[Batch, set[str]]:
    """Return the first inputs that a model takes, and the names of the modules that run on them."""
    first_error = None
    best: tuple[Batch, set[str]] | None = None
    for batch in candidate_batches(model):
        try:
            ran = modules_that_run(model, batch)
        except Exception as error:
            first_error = first_error or error
            continue
        if best is None or len(ran) > len(best[1]):
            best = (batch, ran)
    if best is None:
        raise CannotBuildError("no plain inputs" + (f": {in_short(first_error)}" if first_error else ""))
    return best


def modules_that_run(model: PreTrainedModel, batch: Batch, method: str = "forward") -> set[str]:
    """Run a model once and return the names of the modules that were called."""
    ran: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.add(name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            tensors = outputs_of(attrgetter(method)(model), batch)
        if not tensors:
            raise CannotBuildError("its output holds no tensor")
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise CannotBuildError("its tiny model gives no finite output")
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def outputs_of(model: Callable[..., Any], batch: Batch, *, name: str = "", seed: int = 0) -> dict[str, torch.Tensor]:
    """Return every floating tensor of an output by name; random choices of a forward are repeatable."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return dict(_tensors(name, model(**copy.deepcopy(batch))))


def _tensors(name: str, value: Any) -> Any:
    if torch.is_tensor(value):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in ("hidden_states", "attentions"):  # one a layer, if a model gives them unasked
                yield from _tensors(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors(f"{name}.{index}", part)


def in_short(error: BaseException | None) -> str:
    """Put an error on one line."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, CannotBuildError) else f"{type(error).__name__}: {text}")[:300]
