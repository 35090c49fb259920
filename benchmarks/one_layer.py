"""Which layer a depth of 1 should keep: a model is trained at three depths, the shallowest of them one given layer.

all-MiniLM-L6-v2 is finetuned on the sample of SST-2 that comes with the package; each step trains the whole model, half
of it or the one layer, drawn alike. Then every layer is measured alone, without finetuning, on validation rows.
"""

from __future__ import annotations

import time
from typing import Any


def run(
    layers: str = "first,middle,last", seeds: int = 2, steps: int = 240, batch: int = 32, rows: int = 872
) -> dict[str, Any]:
    """Train one model for each layer of the list and each seed, and score all single layers of each."""
    import torch
    from torch.utils.data import DataLoader

    from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
    from hf_layerdrop.cli.demo_run import demo_checkpoint, demo_data
    from hf_layerdrop.tasks.classification import padding_collator
    from hf_layerdrop.tasks.task import tokenize

    tokenizer = load_tokenizer(str(demo_checkpoint()))
    data = tokenize(demo_data(), tokenizer, max_length=64)
    collate = padding_collator(tokenizer)
    validation = data.validation["validation"]
    tested = list(DataLoader(validation.select(range(min(rows, len(validation)))), 64, collate_fn=collate))
    table = []
    for layer in layers.split(","):
        for seed in range(seeds):
            order = torch.Generator().manual_seed(seed)
            trained = iter(DataLoader(data.train, batch, shuffle=True, generator=order, collate_fn=collate))
            begun = time.perf_counter()
            table.append({"layer": layer, "seed": seed, **_trained_and_tested(trained, tested, layer, seed, steps)})
            table[-1]["seconds"] = round(time.perf_counter() - begun, 1)
            print(table[-1], flush=True)
    return {"steps": steps, "batch": batch, "rows": rows, "table": table}


def _trained_and_tested(trained: Any, tested: Any, layer: str, seed: int, steps: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup, set_seed

    from hf_layerdrop import sub_network
    from hf_layerdrop.cli.demo_run import demo_checkpoint
    from hf_layerdrop.samplers.draws import integers

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(demo_checkpoint(), num_labels=2)
    model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
    rates = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    depth = model.config.num_hidden_layers
    alone = {"first": 0, "middle": depth // 2, "last": depth - 1}[layer]
    for step in range(steps):
        kept = ["all", depth // 2, [alone]][integers(seed, step, 0, 0, "depth", 1)[0] % 3]
        with sub_network(model.train(), kept):
            model(**next(trained)).loss.backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    specs: dict[str, Any] = {"whole": "all", "half": depth // 2} | {f"layer {k}": [k] for k in range(depth)}
    return {name: _accuracy(model.eval(), tested, spec) for name, spec in specs.items()}


def _accuracy(model: Any, batches: Any, spec: Any) -> float:
    import torch

    from hf_layerdrop import sub_network

    right = count = 0
    with sub_network(model, spec), torch.no_grad():
        for rows in batches:
            right += int((model(**rows).logits.argmax(-1) == rows["labels"]).sum())
            count += len(rows["labels"])
    return round(right / count, 4)
