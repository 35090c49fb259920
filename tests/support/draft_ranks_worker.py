"""What each of two processes does for test_draft_ranks.py: choose a draft together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_layerdrop import search_layers
from ranks import Case, run_cases


def of_a_draft(rank: int, size: int) -> Mapping[str, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=4, initializer_range=0.3, eos_token_id=None, pad_token_id=0)
    model = LlamaForCausalLM(config)
    runs: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: runs.append(1))
    prompts = [{"input_ids": torch.randint(3, 60, (2, 6))} for _ in range(2)]
    found = search_layers(
        model, prompts, objective="accepted_tokens_per_second", max_new_tokens=8, strategy="exhaustive", progress=False
    )
    return {"found": found.to_dict(), "runs": len(runs)}


CASES: dict[str, Case] = {"draft": of_a_draft}

if __name__ == "__main__":
    run_cases(CASES, sys.argv[1:])
