"""Tiny models of every head of the three families, from configs: 4 layers, no other dropout, weights that matter."""

from __future__ import annotations

import copy
import gc
import os
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models are no faster with two threads, and where other tests hold the cores, the two wait for each other. Before
# torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_ASSETS_CACHE", tempfile.mkdtemp(prefix="hf_layerdrop-"))  # no answers of the user's own
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network; those that need a Hub start their own

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from packaging.version import Version
from transformers import BartConfig, BertConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig

torch.set_num_threads(1)
# What is imported makes each search for garbage long: a tenth of the time of all tests.
gc.set_threshold(50_000, 20, 100)

# A busy machine is slow, and no failure for that.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# These take half a minute and more, each: they come first, so that no worker is left alone with one at the end.
LONGEST = {
    "test_types",
    "test_compile",
    "test_compiled_structures",
    "test_crash",
    "test_benchmarks",
    "test_examples",
    "test_train",
}
# What a forward calls the cache that it is given and that it returns.
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
DEPTH = 4
CUT = (0, 1, 0, 1)  # rates under which two of them always run, and two never
VOCABULARY = 60
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "num_labels": 2,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": DEPTH,
    "decoder_layers": DEPTH,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "init_std": 0.3,
    "num_labels": 3,  # its own default: a config of two labels is saved without them, and loads as three
    "pad_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {
    "bert": [
        "BertModel",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ],
    "roberta": [
        "RobertaModel",
        "RobertaForCausalLM",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaForMultipleChoice",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ],
    "bart": [
        "BartModel",
        "BartForConditionalGeneration",
        "BartForSequenceClassification",
        "BartForQuestionAnswering",
        "BartForCausalLM",
    ],
}
ALL_HEADS = [head for heads in HEADS.values() for head in heads]
# One head a family, and the decoder alone, for properties that do not depend on the head.
ONE_EACH = ["BertForSequenceClassification", "RobertaForMaskedLM", "BartForConditionalGeneration", "BartForCausalLM"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a second environment try some cases of each test."""
    parser.addoption("--cases", type=int, help="of each test so many cases, spread over all; its own mark comes first")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first; mark as long what is beyond the cases of a test's short form."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: list[pytest.Item] = []
    for cases in by_test.values():
        marker = cases[0].get_closest_marker("cases")
        short = marker.args[0] if marker else None
        for item in _beyond(short, cases):
            item.add_marker("long")
        if asked := config.getoption("--cases"):
            left_out += _beyond(short or asked, cases)
    if left := {*left_out}:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left]


def _beyond(count: int | None, cases: list[pytest.Item]) -> list[pytest.Item]:
    """Return all cases of a test but ``count`` of them, the first and the last among these."""
    if count is None or count >= len(cases):
        return []
    taken = {place * (len(cases) - 1) // max(count - 1, 1) for place in range(count)}
    return [item for place, item in enumerate(cases) if place not in taken]


def pytest_collection_finish() -> None:
    """Take what was imported out of all searches for garbage."""
    gc.freeze()


def tiny_config(head: str, **changes: object) -> PreTrainedConfig:
    """Return the config of a tiny model."""
    if head.startswith("Bart"):
        return BartConfig(**{**BART, **changes})
    is_decoder = head in ("BertLMHeadModel", "RobertaForCausalLM")
    config_class = BertConfig if head.startswith("Bert") else RobertaConfig
    return config_class(**{**BERT, "is_decoder": is_decoder, **changes})


def build(head: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Build a tiny model of the transformers class of that name; the seed decides its weights.

    The first of each kind is kept, and copied, which takes half as long; torch's generator ends where building ends.
    """
    built = _built if all(isinstance(value, Hashable) for value in changes.values()) else _built.__wrapped__
    model, generator = built(head, seed, torch.get_default_device(), torch.get_default_dtype(), **changes)
    torch.set_rng_state(generator)
    return copy.deepcopy(model)


@lru_cache(typed=True)
def _built(
    head: str, seed: int, device: torch.device, dtype: torch.dtype, **changes: object
) -> tuple[PreTrainedModel, torch.Tensor]:
    torch.manual_seed(seed)
    model = getattr(transformers, head)._from_config(tiny_config(head, **changes), attn_implementation="eager")
    with torch.no_grad():  # biases and norms start at 0 and 1, where a mistake in copying them would not show
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval(), torch.get_rng_state()


def injected(head: str, rate: object = 0.5, **settings: object) -> PreTrainedModel:
    """Build a tiny model with LayerDrop in it."""
    from hf_layerdrop import LayerDropConfig, inject_layerdrop

    return inject_layerdrop(build(head), LayerDropConfig(rate, **settings))


def batch_for(head: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs with padding, without labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2, 9) if "MultipleChoice" in head else (3, 9)
    ids = torch.randint(5, VOCABULARY, shape, generator=generator)
    mask = torch.ones_like(ids)
    if head != "BartForSequenceClassification":  # it needs the same number of end tokens in every row
        ids[0, ..., -3:] = 1
        mask[0, ..., -3:] = 0
    ids[..., 5] = 2
    return {"input_ids": ids, "attention_mask": mask}


def output_of(model: PreTrainedModel, batch: dict[str, torch.Tensor], **kwargs: object) -> torch.Tensor:
    """Return the tensor that a head is there for."""
    outputs = model(**batch, **kwargs)
    names = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
    return next(outputs[name] for name in names if name in outputs)


def keep_all_stacks(model: PreTrainedModel, layers: list[int]) -> dict[str, list[int]]:
    """Return the ``keep_layers`` that cuts every stack of a model to the same layers."""
    from hf_layerdrop.architectures.stacks import depths_of

    return {name: list(layers) for name in depths_of(model)}


@pytest.fixture(params=ONE_EACH)
def head(request: pytest.FixtureRequest) -> str:
    """One head a family, and BART's decoder alone."""
    return request.param


@pytest.fixture(params=ALL_HEADS)
def any_head(request: pytest.FixtureRequest) -> str:
    """Every head that transformers has for the three families."""
    return request.param


def layers_of(model: PreTrainedModel) -> dict[str, list[torch.nn.Module]]:
    """Return the layers of each stack, found by their names."""
    from hf_layerdrop.architectures.stacks import find_stacks

    return {name: list(stack.layers(model)) for name, stack in find_stacks(model).items()}


def cut_by_hand(model: PreTrainedModel, keep_layers: dict[str, list[int]]) -> PreTrainedModel:
    """Build a plain model of the kept layers and copy the weights by name: an oracle without hf_layerdrop."""
    config = copy.deepcopy(model.config)
    for stack, layers in keep_layers.items():
        setattr(config, f"{stack}_layers" if config.model_type == "bart" else "num_hidden_layers", len(layers))
    weights = {}
    for name, weight in model.state_dict().items():
        match = re.search(r"\b(encoder|decoder)\.layers?\.(\d+)\.", name)
        if match and match[1] in keep_layers:
            if int(match[2]) not in keep_layers[match[1]]:
                continue
            new = keep_layers[match[1]].index(int(match[2]))
            name = f"{name[: match.start(2)]}{new}{name[match.end(2) :]}"
        weights[name] = weight.clone()
    implementation = model.config._attn_implementation
    cut = getattr(transformers, type(model).__name__.removeprefix("LayerDrop"))._from_config(
        config, attn_implementation=implementation
    )
    cut.load_state_dict(weights, strict=True)
    return cut.train(model.training)


@contextmanager
def recorded_runs(model: PreTrainedModel) -> Iterator[dict[str, list[int]]]:
    """Count which layers run inside the block, by a hook on the attention inside each: it sees work, not decisions."""
    runs: dict[str, list[int]] = {name: [] for name in layers_of(model)}

    def recorder(stack: str, layer: int) -> object:
        return lambda *_: runs[stack].append(layer)

    hooks = [
        next(layer.children()).register_forward_pre_hook(recorder(stack, index))
        for stack, layers in layers_of(model).items()
        for index, layer in enumerate(layers)
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def drawn(model: PreTrainedModel, batch: dict[str, torch.Tensor], forwards: int = 1) -> list[dict[str, list[int]]]:
    """Run training forwards and return which layers each of them ran."""
    masks = []
    for _ in range(forwards):
        with recorded_runs(model) as runs:
            model.train()(**batch)
        masks.append(runs)
    return masks


def loss_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a loss that every output counts in differently, so that no two layers' gradients are alike."""
    output = output_of(model, batch)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return (output * weights).sum()


def gradients_of(model: PreTrainedModel, *losses: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Return each parameter's gradient of the sum of the losses, None where there is none."""
    model.zero_grad(set_to_none=True)
    sum(losses).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same_tensors(
    found: Mapping[str, torch.Tensor | None], expected: Mapping[str, torch.Tensor | None], *, atol: float = 0.0
) -> None:
    """Compare tensors by name: bit for bit, or within ``atol``."""
    assert list(found) == list(expected)
    for name, tensor in found.items():
        other = expected[name]
        assert (tensor is None) == (other is None), name
        if tensor is not None and other is not None:
            assert tensor.dtype == other.dtype, name
            same = torch.equal(tensor, other) if not atol else torch.allclose(tensor, other, rtol=1e-5, atol=atol)
            assert same, f"{name} differs by {(tensor - other).abs().max().item()}"
