"""Rows that drop their own layers, and what a layer adds to the others scaled by the share of rows that it runs on."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_step


@pytest.mark.parametrize("rows", [3, 4])
def test_what_a_layer_adds_to_the_rows_that_it_runs_on_is_scaled_by_their_share(rows):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    batch = {"input_ids": torch.randint(0, 50, (rows, 5)), "use_cache": False, "output_hidden_states": True}
    plain = model(**batch).hidden_states
    inject_layerdrop(model, LayerDropConfig([0, 0.5, 0, 0], seed=0, granularity="row", scale="kept"))
    seen = set()
    for step in range(8):
        set_step(model, step)
        before, after = model(**batch).hidden_states[1:3]
        assert torch.equal(before, plain[1])
        kept = tuple(row for row in range(rows) if not torch.equal(after[row], before[row]))
        assert len(kept) == 2
        seen.add(kept)
        expected = before + (plain[2] - before) * rows / 2
        assert torch.allclose(after[list(kept)], expected[list(kept)], atol=1e-5)
    assert len(seen) > 1
