"""Work is shared between sub-networks only where it is proven to give the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.granite_speech.configuration_granite_speech import GraniteSpeechEncoderConfig
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

from conftest import DEPTH, batch_for, build, output_of
from hf_layerdrop.evaluation.encoder_sharing import encoder_memory, shared_encoder
from hf_layerdrop.evaluation.evaluate import evaluate_depths, every_sub_network
from hf_layerdrop.evaluation.prefix_sharing import shared_prefixes
from hf_layerdrop.pruning.prune import Cutter, prune_layers

HEAD = "BertForSequenceClassification"


class WritesIntoStates(nn.Module):
    """Run the layers of an encoder, and write into the hidden state between them."""

    def __init__(self, encoder: nn.Module, how: str) -> None:
        super().__init__()
        self.layer = encoder.layer
        self.how = how

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        for idx, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, attention_mask)
            if self.how == "by position" and idx == len(self.layer) // 2:
                hidden_states += 0.3 * hidden_states.roll(1, -1)
            if self.how == "after each":
                hidden_states.mul_(0.5).add_(0.1)
            if self.how == "a view":
                hidden_states[:, 0].zero_()
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


def writing(how: str) -> Any:
    model = build(HEAD)
    model.bert.encoder = WritesIntoStates(model.bert.encoder, how)
    return model


@pytest.mark.parametrize("how", ["by position", "after each", "a view", "not at all"])
def test_a_model_that_writes_into_its_hidden_states_scores_as_each_alone(how: str) -> None:
    model = writing(how)
    data = [{**batch_for(HEAD, seed), "labels": torch.tensor([0, 1, 1])} for seed in range(2)]
    kept = [layers["encoder"] for layers in every_sub_network({"encoder": DEPTH})]
    together = evaluate_depths(model, data, depths=kept, metric="loss", progress=False)
    alone = [evaluate_depths(model, data, depths=[layers], metric="loss", progress=False)[0] for layers in kept]
    assert [result.metrics for result in together] == [result.metrics for result in alone]
    forwards = sum(result.layer_forwards for result in together)
    assert (forwards == 2**DEPTH - 1) == (how == "not at all")
    for layers, result in zip(kept, together, strict=True):
        cut = copy.deepcopy(model)
        prune_layers(cut, layers)
        cut.config.use_cache = False
        with torch.no_grad():
            losses = torch.stack([cut(**batch).loss for batch in data])
        assert result.metrics["loss"] == float(losses.repeat_interleave(3).double().mean())


def test_a_layer_that_is_given_something_else_runs_again() -> None:
    model, batch = build(HEAD), batch_for(HEAD)
    other = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    other["attention_mask"][:, -2:] = 0
    with torch.no_grad():
        expected = [output_of(model, inputs) for inputs in (batch, other)]
        with shared_prefixes(Cutter(model), model.device) as runner:
            whole = {"encoder": range(DEPTH)}
            found = [runner.run(whole, lambda inputs=inputs: output_of(model, inputs)) for inputs in (batch, other)]
            again = runner.run(whole, lambda: output_of(model, other))
    assert torch.equal(found[0][0], expected[0])
    assert torch.equal(found[1][0], expected[1])
    assert not torch.equal(*expected)
    assert [run.layer_forwards for _, run in (*found, again)] == [DEPTH, DEPTH, 0]


def test_a_layer_with_a_hook_runs_for_every_sub_network() -> None:
    model, batch = build(HEAD), batch_for(HEAD)
    seen: list[torch.Tensor] = []
    model.bert.encoder.layer[0].register_forward_hook(lambda layer, given, output: seen.append(output))
    with torch.no_grad(), shared_prefixes(Cutter(model), model.device) as runner:
        for layers in ([0, 1], [0, 2]):
            runner.run({"encoder": layers}, lambda: output_of(model, batch))
    assert len(seen) == 2


def test_without_a_count_of_writes_nothing_is_shared() -> None:
    model, batch = build(HEAD), batch_for(HEAD)
    with torch.inference_mode(), shared_prefixes(Cutter(model), model.device) as runner:
        runs = [runner.run({"encoder": [0, 1]}, lambda: output_of(model, batch)) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert [run.layer_forwards for _, run in runs] == [2, 2]


def test_an_encoder_output_that_was_written_into_is_computed_again() -> None:
    model, batch = build("BartForConditionalGeneration"), batch_for("BartForConditionalGeneration")
    cutter = Cutter(model)
    encoder = model.get_encoder()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    memory = encoder_memory(cutter)
    with torch.no_grad(), shared_encoder(cutter, model, memory):
        first = encoder(**inputs).last_hidden_state
        expected = first.clone()
        assert encoder(**inputs).last_hidden_state is first
        first += 1
        assert torch.equal(encoder(**inputs).last_hidden_state, expected)


def test_speech_encoders_that_add_to_their_hidden_states_are_measured_as_the_cut_model() -> None:
    config = GraniteSpeechEncoderConfig(
        input_dim=8, num_layers=4, hidden_dim=16, num_heads=2, dim_head=8, output_dim=12, context_size=8, max_pos_emb=16
    )
    torch.manual_seed(0)
    encoder = GraniteSpeechCTCEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    states = torch.randn(2, 16, 8)
    cutter = Cutter(encoder)
    (stack,) = cutter.depths
    kept = [{stack: layers} for layers in ([0, 1, 2, 3], [0, 2, 3], [1, 2, 3], [0, 2], [1, 2])]
    forward = lambda: encoder(states).last_hidden_state  # noqa: E731 - the same for both
    with torch.no_grad():
        alone = []
        for layers in kept:
            with cutter.sub_network(layers):
                alone.append(forward())
        with shared_prefixes(cutter, states.device) as runner:
            together = [runner.run(layers, forward)[0] for layers in kept]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])
