"""A draft is chosen by what it is for: rounds are counted as generation really takes them, and time decides."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from conftest import BART
from hf_layerdrop import Selection, search_layers, shared_sub_network
from hf_layerdrop.errors import LayerDropConfigError, LayerDropError
from hf_layerdrop.search.drafts.rounds import DRAFT_TOKENS, count_rounds, rounds_by_length
from hf_layerdrop.search.drafts.speed import DraftMeter, Seconds
from hf_layerdrop.search.drafts.texts import agreement, batches_of, read_prompts, write_texts

NEW = 20
NO_END = {"eos_token_id": None, "pad_token_id": 0}
SMALL = {"vocab_size": 60, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.3, **NO_END}
BUILDERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, hidden_size=16, n_positions=80, bos_token_id=1)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, hidden_size=16, intermediate_size=32, max_position_embeddings=80)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, hidden_size=16, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=80)
    ),
}


SETTINGS: dict[str, Any] = {
    "objective": "accepted_tokens_per_second",
    "max_new_tokens": NEW,
    "progress": False,
    "share_samples": 1,
}


def build(family: str) -> PreTrainedModel:
    """Build a model whose layers do little, so that sets of them agree with it now and then."""
    torch.manual_seed(0)
    model = BUILDERS[family]().eval()
    layers = next(module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList))
    with torch.no_grad():
        for weight in (weight for weight in layers.parameters() if weight.dim() > 1):
            weight.mul_(0.7)
    return model


@pytest.fixture(params=BUILDERS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def prompts(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 60, (5 + place,), generator=generator)} for place in range(count)]


def search_of_one(model: PreTrainedModel) -> Selection:
    return search_layers(model, prompts(2), depth=2, strategy="first", **SETTINGS)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every layer take as long, on every machine: 4 and 1 for what is around the layers of a round and a token."""
    monkeypatch.setattr(DraftMeter, "_plain", lambda meter: 5.0)
    monkeypatch.setattr(DraftMeter, "_drafted", lambda meter, kept: Seconds(8.0, 1.0 + len(list(kept.values())[-1])))


def counted(model: PreTrainedModel, kept: Any, length: int, tokens: torch.Tensor, **settings: Any) -> tuple[int, int]:
    """Generate with a draft; check that its text is that without one, and return the forwards of both."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **settings}
    alone = model.generate(tokens[None], **settings)
    draft = shared_sub_network(model, kept)
    draft.generation_config.update(
        num_assistant_tokens=length, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    calls = {"whole": 0, "draft": 0}
    hooks = [
        one.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, one in (("whole", model), ("draft", draft))
    ]
    assert torch.equal(model.generate(tokens[None], assistant_model=draft, **settings), alone)
    for hook in hooks:
        hook.remove()
    return calls["whole"], calls["draft"]


def counts_of(model: PreTrainedModel, kept: Any, rows: list[dict[str, torch.Tensor]]) -> Mapping[str, float]:
    """Count rounds with the cut model, which is not generating."""
    texts = write_texts(model, [row["input_ids"] for row in rows], NEW)
    batches = batches_of(texts, 3)
    with torch.no_grad():
        return rounds_by_length(agreement(shared_sub_network(model, kept), batches, texts), NEW)


def test_rounds_are_counted_as_generation_takes_them(model: PreTrainedModel) -> None:
    rows, shares = prompts(2), []
    for layers in ((0,), (0, 1, 3), (1, 2, 3)):
        numbers = counts_of(model, list(layers), rows)
        shares.append(numbers["acceptance"])
        for length in (1, 3, 9):
            counts = [counted(model, list(layers), length, row["input_ids"]) for row in rows]
            rounds, drafted = map(sum, zip(*counts, strict=True))
            assert (numbers[f"rounds_{length}"], numbers[f"drafted_{length}"]) == (rounds, drafted)
    assert any(0.2 < share < 0.95 for share in shares)  # neither all nor nothing is counted


@pytest.mark.usefixtures("steady")
def test_the_winner_is_the_fastest_of_all_sets_of_all_depths(model: PreTrainedModel) -> None:
    rows = prompts()
    found = search_layers(model, rows, strategy="exhaustive", test_dataset=rows, **SETTINGS)
    (stack,) = found.depths
    speeds = {}
    for layers in (layers for size in (1, 2, 3) for layers in combinations(range(4), size)):
        numbers = counts_of(model, list(layers), rows)
        taken = {
            length: 8 * numbers[f"rounds_{length}"] + (1 + len(layers)) * numbers[f"drafted_{length}"]
            for length in DRAFT_TOKENS
        }
        length = min(taken, key=lambda length: taken[length])
        speeds[layers] = NEW * len(rows) / taken[length], length
    assert found.score == found.test_score == pytest.approx(max(speeds.values())[0])
    assert found.draft is not None
    assert (found.score, found.draft.num_assistant_tokens) == pytest.approx(speeds[found.keep_layers[stack]])
    assert len({speed for speed, _ in speeds.values()}) > 4
    assert found.whole_score == pytest.approx(1 / 5)
    assert all(other.score == pytest.approx(speeds[other.keep_layers[stack]][0]) for other in found.runner_ups)


@pytest.mark.usefixtures("steady")
def test_a_text_that_ends_early_is_counted_as_well() -> None:
    model = build("llama")
    tokens = prompts(1)[0]["input_ids"]
    text = model.generate(tokens[None], max_new_tokens=NEW, do_sample=False)[0, len(tokens) :].tolist()
    model.generation_config.eos_token_id = next(token for token in text[4:] if token not in text[:4])
    found = search_layers(model, [{"input_ids": tokens}], depth=3, strategy="first", **SETTINGS)
    assert found.draft is not None
    rounds, _ = counted(model, found, found.draft.num_assistant_tokens, tokens)
    length = len(model.generate(tokens[None], max_new_tokens=NEW, do_sample=False)[0]) - len(tokens)
    assert length < NEW
    assert found.draft.tokens_per_round == pytest.approx(length / rounds)


def test_agreement_by_chance_gives_the_tokens_a_round_of_the_formula() -> None:
    random, chance, length = Random(0), 0.7, 4
    tokens = 40_000
    rounds, drafted = count_rounds([random.random() < chance for _ in range(tokens)], length, tokens)
    assert tokens / rounds == pytest.approx((1 - chance ** (length + 1)) / (1 - chance), rel=0.02)
    assert drafted == pytest.approx(length * rounds, abs=length)
    assert count_rounds([True] * 10, 4, 10) == (2, 8)
    assert count_rounds([False] * 10, 4, 10) == (10, 30)  # 4 seven times, then 3, 2, 1 and 0: as many as are left


@pytest.mark.usefixtures("steady")
def test_a_dear_draft_is_shallow_or_short_and_what_does_not_pay_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("llama"), prompts()
    cheap = search_layers(model, rows, strategy="exhaustive", **SETTINGS)
    assert any("No draft that was tried pays" in warning for warning in cheap.warnings) == (cheap.score <= 0.2)
    monkeypatch.setattr(DraftMeter, "_drafted", lambda meter, kept: Seconds(1.0, 0.01))
    free = search_layers(model, rows, strategy="exhaustive", **SETTINGS)
    monkeypatch.setattr(DraftMeter, "_drafted", lambda meter, kept: Seconds(8.0, 100.0))
    dear = search_layers(model, rows, strategy="exhaustive", **SETTINGS)
    assert free.draft is not None
    assert dear.draft is not None
    assert free.draft.num_assistant_tokens > dear.draft.num_assistant_tokens == 1
    assert not any("pays" in warning for warning in free.warnings)
    assert any("generate without" in warning for warning in dear.warnings)


@pytest.mark.usefixtures("steady")
def test_prompts_come_as_padded_batches_too_and_a_journal_knows_what_was_counted(tmp_path: Path) -> None:
    model, rows = build("llama"), prompts()
    width = max(len(row["input_ids"]) for row in rows)
    padded = [torch.nn.functional.pad(row["input_ids"], (width - len(row["input_ids"]), 0)) for row in rows]
    mask = torch.stack(padded) > 0
    batch = {"input_ids": torch.stack(padded), "attention_mask": mask.long()}
    settings = {**SETTINGS, "depth": 2, "journal": tmp_path / "journal"}
    one = search_layers(model, rows, **settings)
    other = search_layers(model, [batch], **settings)
    assert other.from_journal == other.evaluations == one.evaluations
    assert (other.keep_layers, other.score, other.test_score) == (one.keep_layers, one.score, one.test_score)
    assert one.test_score is not None
    assert Selection.from_dict(one.to_dict()) == one
    assert search_layers(model, rows, **{**settings, "max_new_tokens": 9}).from_journal == 0


def test_what_is_measured_is_generation_with_the_draft_and_the_model_stays_as_it_is(model: PreTrainedModel) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    found = search_of_one(model)
    assert model.training
    assert found.score > 0
    assert found.whole_score > 0
    assert found.draft is not None
    draft = shared_sub_network(model.eval(), found)
    draft.generation_config.update(**found.draft.settings)
    tokens = prompts(1)[0]["input_ids"][None]
    alone = model.generate(tokens, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(model.generate(tokens, assistant_model=draft, max_new_tokens=NEW, do_sample=False), alone)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


BAD = [
    ({"dataset": []}, "there are no prompts"),
    ({"dataset": None}, "there are no prompts"),
    ({"dataset": ["Once upon a time"]}, "A prompt is 'Once upon"),
    ({"dataset": [{"input_ids": []}]}, "Prompt 0 has no tokens"),
    ({"dataset": [*prompts(1), {"input_ids": [5] * 61}]}, "Prompt 1 has 61 tokens, .* takes 81 .* has 80"),
    ({"test_dataset": [{"input_ids": [5] * 61}]}, "has 61 tokens"),
    ({"max_new_tokens": 1}, "whole number from 2"),
    ({"max_new_tokens": 2.5}, "whole number from 2"),
    ({"objective": "speed"}, "objective is 'speed': give 'accepted_tokens_per_second'"),
    ({"objective": None, "depth": 2}, "max_new_tokens is 20, but it is of objective="),
    ({"metric": "loss"}, "metric is 'loss'"),
    ({"greater_is_better": True}, "greater_is_better is True"),
    ({"depth": 5}, "from 1 to 4"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_input_is_refused_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    model = build("llama")
    model.forward = None
    settings = {"dataset": prompts(), **SETTINGS, **settings}
    with pytest.raises(LayerDropError, match=message) as caught:
        search_layers(model, settings.pop("dataset"), **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_generate_has_no_use_for_a_draft() -> None:
    bert = BertModel(BertConfig(num_hidden_layers=4, hidden_size=16, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(LayerDropError, match="a BertModel does not generate"):
        search_layers(bert, prompts(), **SETTINGS)
    bart = BartForConditionalGeneration(BartConfig(**BART))
    bart.forward = None
    with pytest.raises(LayerDropError, match="give a model without an encoder"):
        search_layers(bart, prompts(), **{**SETTINGS, "depth": 2})
    single = LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 1}, hidden_size=16, intermediate_size=32))
    with pytest.raises(LayerDropConfigError, match="say by depth= how many"):
        search_layers(single, prompts(), **SETTINGS)


def test_prompts_are_taken_in_every_form_that_a_tokenizer_gives():
    model, single = build("llama"), [{"input_ids": row["input_ids"].tolist()} for row in prompts(3)]
    texts = [row["input_ids"] for row in single]
    longest = max(map(len, texts))
    padded = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in texts]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts]),
    }
    for form in (single, {"input_ids": texts}, [{"input_ids": texts}], padded, [padded]):
        assert [row.tolist() for row in read_prompts(model, form, NEW)] == texts
