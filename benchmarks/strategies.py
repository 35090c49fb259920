"""All strategies on small models trained with LayerDrop on real data: their scores, and beam against exhaustive.

The data is the sample of SST-2 that comes with the package, with a vocabulary of its own words; the models are trained
from scratch, which takes about two minutes each. The search sees training rows that were held out of the training, and
its winners are tested on all 872 validation rows. The strategy ``learned`` chooses from a second model, trained alike
but with learned rates, beside the evenly spread layers of that model.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, int]] = {
    "beam:2": {"width": 2, "swaps": 0},
    "beam:4": {"width": 4, "swaps": 0},
    "random": {"samples": 32},
}


def run(
    layers: int = 12,
    depths: str = "",
    seeds: int = 3,
    first_seed: int = 0,
    steps: int = 2000,
    rate: float = 0.3,
    hidden: int = 64,
    search_rows: int = 2000,
    exhaustive_at: str = "",
    strategies: str = "",
    output: str = "",
) -> dict[str, Any]:
    """Train a model a seed, and choose its layers by every strategy at every depth.

    ``depths`` are N/4, N/2 and 3N/4 if empty, ``exhaustive_at`` too; "0" is never. ``beam:2`` and ``beam:4`` are beams
    of these widths without swaps.
    """
    from hf_layerdrop.search.strategies import STRATEGIES

    wanted = [int(depth) for depth in depths.split(",")] if depths else [layers // 4, layers // 2, 3 * layers // 4]
    thorough = [int(depth) for depth in exhaustive_at.split(",")] if exhaustive_at else wanted
    names = strategies.split(",") if strategies else list(STRATEGIES)
    rows, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first_seed, first_seed + seeds):
            for sampler, chosen in _by_sampler(names).items():
                trainer = _trained(Path(folder), layers, hidden, rate, steps, search_rows, seed, sampler)
                whole.append({"seed": seed, "sampler": sampler, **_whole(trainer)})
                print(json.dumps(whole[-1]), flush=True)
                for depth in wanted:
                    for name, label in chosen.items():
                        if name != "exhaustive" or depth in thorough:
                            rows.append({**_chosen(trainer, name, depth, seed), "strategy": label})
                            print(json.dumps(rows[-1]), flush=True)
    if output:
        Path(output).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {
        "settings": {name: SETTINGS[name] for name in names if name in SETTINGS},
        "whole_model": whole,
        "beam_against_exhaustive": _compared(rows),
        "table": _table(rows),
    }


def _by_sampler(names: list[str]) -> dict[str, dict[str, str]]:
    """Return what each model is for: strategies, and how the table names them."""
    ordinary = {name: name for name in names if name != "learned"}
    learned = {"spread": "spread, of the model with learned rates", "learned": "learned"} if "learned" in names else {}
    return {sampler: chosen for sampler, chosen in {"bernoulli": ordinary, "learned": learned}.items() if chosen}


def _whole(trainer: Any) -> dict[str, float]:
    """Score the whole model on both sets of rows."""
    searched, tested = (trainer.evaluate(rows)["eval_accuracy"] for rows in (trainer.eval_dataset, trainer.test_rows))
    rates = (trainer.model.config.hf_layerdrop or {}).get("learned_rates", {})
    return {"score": searched, "test_score": tested, **({"rates": rates} if rates else {})}


def _chosen(trainer: Any, name: str, depth: int, seed: int) -> dict[str, Any]:
    from hf_layerdrop import search_layers
    from hf_layerdrop.errors import KeepLayersError

    try:
        found = search_layers(
            trainer,
            metric="accuracy",
            strategy=name.partition(":")[0],
            depth=depth,
            test_dataset=trainer.test_rows,
            seed=seed,
            progress=False,
            **SETTINGS.get(name, {}),
        )
    except KeepLayersError:  # every other has no set of this depth
        return {"seed": seed, "depth": depth, "strategy": name, "score": None, "test_score": None}
    return {
        "seed": seed,
        "depth": depth,
        "strategy": name,
        "kept": found.spec,
        "score": found.score,
        "test_score": found.test_score,
        "layer_forwards": found.layer_forwards,
        "all_layer_forwards": found.layer_forwards + found.extra_layer_forwards,
        "share_as_good": found.share_as_good,
        "warned": bool(found.warnings),
    }


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put each beam beside the exhaustive search of the same model and depth."""
    best = {(row["seed"], row["depth"]): row for row in rows if row["strategy"] == "exhaustive"}
    return [
        {
            "beam": row["strategy"],
            "seed": row["seed"],
            "depth": row["depth"],
            "behind": every["score"] - row["score"],
            "share_of_layer_forwards": row["layer_forwards"] / every["layer_forwards"],
            "share_with_all_extras": row["all_layer_forwards"] / every["layer_forwards"],
        }
        for row in rows
        if row["strategy"].startswith("beam") and (every := best.get((row["seed"], row["depth"])))
    ]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Average over seeds: one line of Markdown a strategy, scores of the search and of the test by depth."""
    depths = sorted({row["depth"] for row in rows})
    lines = [
        "| strategy | " + " | ".join(f"{depth} layers" for depth in depths) + " |",
        "| :--- |" + " ---: |" * len(depths),
    ]
    for name in dict.fromkeys(row["strategy"] for row in rows):
        cells = [_cell([row for row in rows if row["strategy"] == name and row["depth"] == depth]) for depth in depths]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    print(*lines, sep="\n")
    return lines


def _cell(rows: list[dict[str, Any]]) -> str:
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        return "-"
    searched, tested = ([100 * row[key] for row in scored] for key in ("score", "test_score"))
    return (
        f"{sum(searched) / len(scored):.1f} / {sum(tested) / len(scored):.1f} ({min(tested):.1f} to {max(tested):.1f})"
    )


def _trained(
    folder: Path, layers: int, hidden: int, rate: float, steps: int, search_rows: int, seed: int, sampler: str
) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    from hf_layerdrop import LayerDropConfig, inject_layerdrop
    from hf_layerdrop.tasks.classification import padding_collator
    from hf_layerdrop.tasks.metrics import compute_metrics_for
    from hf_layerdrop.tasks.registry import load_task

    tokenizer, encoded = _encoded(folder)
    searched = encoded["train"].select(range(search_rows))
    set_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    )
    inject_layerdrop(model, LayerDropConfig(rate, seed=seed, sampler=sampler))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder / "training"),
            max_steps=steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=5e-4,
            warmup_steps=0.1,
            seed=seed,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=encoded["train"].select(range(search_rows, len(encoded["train"]))),
        eval_dataset=_by_length(searched),
        data_collator=padding_collator(tokenizer),
        compute_metrics=compute_metrics_for(load_task("sst2")),
    )
    trainer.train()
    trainer.test_rows = _by_length(encoded["validation"])
    return trainer


@cache
def _encoded(folder: Path) -> tuple[Any, Any]:
    """Return a tokenizer and the rows, which all models of a run share."""
    from hf_layerdrop.tasks.embedded import embedded_sst2

    data = embedded_sst2()
    tokenizer = _tokenizer(data["train"]["sentence"], folder)
    return tokenizer, data.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=48), batched=True)


def _by_length(rows: Any) -> Any:
    """Sort rows by length: batches of it hold little padding, and every sub-network is scored on them."""
    return rows.map(lambda row: {"length": len(row["input_ids"])}).sort("length").remove_columns("length")


def _tokenizer(sentences: list[str], folder: Path) -> Any:
    """Make a tokenizer of the words that occur at least twice."""
    from transformers import BertTokenizer

    counts = Counter(word for sentence in sentences for word in sentence.lower().split())
    words = [word for word, count in counts.most_common() if count > 1]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary))
