"""A user's own evaluation, generation, and trainers decide as they measure."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from conftest import DEPTH, batch_for, build, recorded_runs
from hf_layerdrop.errors import (
    TaskError,
)
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.search.search import search_layers
from searching import BART, BERT, examples, labelled, search


def test_an_evaluate_function_sees_each_sub_network_in_eval_mode_one_by_one() -> None:
    model = build(BERT).train()
    seen = []

    def evaluate(cut):
        assert not cut.training
        assert not torch.is_grad_enabled()
        seen.append(cut.config.num_hidden_layers)
        return {"good": float(cut(**labelled()[0]).logits.sum()), "other": 0.0}

    found = search(model, strategy="exhaustive", evaluate=evaluate, metric="good", test_dataset=None)
    values = {}
    for kept in combinations(range(DEPTH), 2):
        prune_layers(cut := build(BERT), list(kept))
        with torch.no_grad():
            values[kept] = float(cut(**labelled()[0]).logits.sum())
    assert found.keep_layers["encoder"] == max(values, key=values.get)
    assert found.score == max(values.values())
    assert seen == [4, 2, 2, 2, 2, 2, 2]
    assert not found.shared
    assert found.layer_forwards == found.layer_forwards_alone == 12
    assert model.training


def test_encoder_outputs_are_shared_over_decoder_choices_with_an_evaluate_function() -> None:
    model = build(BART)

    def evaluate(cut):
        outputs = [cut(**batch) for batch in labelled(BART)]
        return float(sum(output.loss for output in outputs))

    with recorded_runs(model) as runs:
        found = search(
            model, strategy="exhaustive", depth={"decoder": 2}, evaluate=evaluate, metric="loss", test_dataset=None
        )
    assert len(runs["encoder"]) == 2 * DEPTH  # two inputs, each once for all seven sub-networks
    assert len(runs["decoder"]) == 2 * (DEPTH + 6 * 2)
    prune_layers(model, found.keep_layers)
    with torch.no_grad():
        assert found.score == evaluate(model)


def test_generation_runs_one_by_one_with_the_encoder_shared_and_scores_what_the_pruned_model_generates(
    tmp_path: Path,
) -> None:
    model = build(BART)
    rows = [{name: value[0] for name, value in batch_for(BART, seed).items()} for seed in range(4)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    settings = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=8,
        generation_num_beams=2,
        per_device_eval_batch_size=2,
    )

    def tokens(seen):
        return {"tokens": float(seen.predictions.clip(0).sum())}

    trainer = Seq2SeqTrainer(model, settings, eval_dataset=rows, compute_metrics=tokens)
    with recorded_runs(model) as runs:
        found = search_layers(
            trainer, test_dataset=rows[:2], depth={"decoder": 2}, strategy="exhaustive", progress=False
        )
    assert not found.shared
    assert found.metric == "tokens"
    # Three passes over two batches and two over one, each for generating and for the loss; unshared, twice as many.
    assert len(runs["encoder"]) <= 2 * (3 * 2 + 2 * 1) * DEPTH
    kept, score = found.keep_layers, found.score
    prune_layers(model, kept)
    assert trainer.evaluate()["eval_tokens"] == score


def test_a_trainer_searches_by_its_own_numbers(tmp_path: Path) -> None:
    def numbers(seen):
        return {"first": float(seen.predictions[:, 0].mean()), "second": float(-seen.predictions[:, 0].mean())}

    model = build(BERT)
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True),
        eval_dataset=examples(16),
        compute_metrics=numbers,
    )
    settings = {"depth": 2, "strategy": "exhaustive", "progress": False, "test_dataset": examples(8)}
    first = search_layers(trainer, metric="first", **settings)
    second = search_layers(trainer, metric="second", **settings)
    assert first.keep_layers != second.keep_layers
    with pytest.raises(TaskError, match="name the one"):
        search_layers(trainer, **settings)
    with pytest.raises(TaskError, match="gives first, second"):
        search_layers(trainer, metric="third", **settings)
    prune_layers(model, first.keep_layers)
    assert trainer.evaluate()["eval_first"] == first.score


def test_a_trainer_that_groups_by_length_reads_the_same_batches_each_time(tmp_path: Path) -> None:
    def rows(count: int) -> list[dict[str, torch.Tensor]]:
        found = examples(count)
        return [{**row, "input_ids": row["input_ids"][: 3 + place % 5]} for place, row in enumerate(found)]

    def padded(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in batch], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.stack([r["labels"] for r in batch]),
        }

    model = build(BERT, num_hidden_layers=6)
    settings = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, train_sampling_strategy="group_by_length"
    )
    trainer = Trainer(model, settings, eval_dataset=rows(64), data_collator=padded)
    search = {
        "metric": "loss",
        "depth": 3,
        "strategy": "exhaustive",
        "progress": False,
        "journal": tmp_path / "journal",
    }
    found = search_layers(trainer, test_dataset=rows(16), **search)
    assert found.layer_forwards == 34  # 4 + 10 + 20 prefixes, though in passes of 16
    again = search_layers(trainer, test_dataset=rows(16), **search)
    assert again.from_journal == 20
    assert again.score == found.score
