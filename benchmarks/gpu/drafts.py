"""Generation where a sub-network drafts and the whole model accepts: tokens a second, and the same tokens as without.

The weights are random: how many tokens are accepted says nothing about trained models. Their residuals are scaled
down, so that a sub-network agrees with the whole now and then and both ways of the loop are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu._device import milliseconds, model_and_batch
from benchmarks.gpu.part import Measurement
from hf_layerdrop import shared_sub_network


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """Without a draft, then with drafts of half and of a quarter of the layers."""
    shared: dict[str, Any] = {}
    for keep in (None, "first:8", "first:4") if not short else (None, "first:3"):
        yield f"Llama 1B, draft {keep or 'none'}", partial(_measure, shared, keep, device, short)


def _measure(shared: dict[str, Any], keep: str | None, device: str, short: bool) -> dict[str, Any]:
    if not shared:
        model, batch = model_and_batch("Llama 1B", device, short)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(0.1)
                layer.mlp.down_proj.weight.mul_(0.1)
        shared |= {"model": model.eval(), "tokens": batch["input_ids"][:1, :64]}
    model, tokens = shared["model"], shared["tokens"]
    new = 8 if short else 128
    settings: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
    }
    if keep is not None:
        settings["assistant_model"] = shared_sub_network(model, keep)
    mask = torch.ones_like(tokens)
    generate = partial(model.generate, tokens, attention_mask=mask, **settings)
    generate()
    found = []
    ms = min(milliseconds(lambda: found.append(generate()), device) for _ in range(1 if short else 3))
    shared.setdefault("plain", found[-1])
    return {"tokens_a_second": 1000 * new / ms, "same_tokens": bool(torch.equal(found[-1], shared["plain"]))}
