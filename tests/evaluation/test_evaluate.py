"""Sub-networks in place: the numbers are those of each alone, and each prefix runs once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from conftest import DEPTH, batch_for, build, keep_all_stacks, output_of
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import KeepLayersError, LayerDropStateError, TaskError
from hf_layerdrop.evaluation.evaluate import Evaluator, depth_name, evaluate_depths, every_sub_network
from hf_layerdrop.evaluation.metrics import load_metric
from hf_layerdrop.evaluation.prefix_sharing import in_walking_order, shared_prefixes
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.models.auto import load_checkpoint
from hf_layerdrop.pruning.prune import Cutter, count_parameters, prune_layers, sub_network
from hf_layerdrop.results.record import SubNetworkResult
from rows import accuracy, arguments, examples

LABELS = torch.tensor([0, 1, 1])


def labelled(head: str, batches: int = 2) -> list[dict[str, torch.Tensor]]:
    data = []
    for seed in range(batches):
        batch = batch_for(head, seed)
        labels = LABELS if "Sequence" in head else batch["input_ids"]
        data.append({**batch, "labels": labels})
    return data


def test_each_sub_network_scores_what_it_scores_alone_and_what_the_pruned_model_scores(head: str) -> None:
    model = build(head)
    stack = next(iter(depths_of(model)))
    depths = every_sub_network(depths_of(model), stack)
    data = labelled(head)
    together = evaluate_depths(model, data, depths=depths, progress=False)
    assert len({result.metrics["loss"] for result in together}) == len(depths)  # every layer matters
    for result in together[:: 4 if len(together) > 8 else 1]:
        alone = evaluate_depths(model, data, depths=[result.keep_layers], progress=False)[0]
        assert alone.metrics == result.metrics
        pruned = build(head)
        prune_layers(pruned, result.keep_layers)
        # An evaluation keeps no cache, whose copies of keys some processors multiply by another kernel.
        pruned.config.use_cache = False
        with torch.no_grad():
            losses = [pruned(**batch).loss for batch in data]
        assert result.metrics["loss"] == float(torch.stack(losses).repeat_interleave(3).double().mean())
        assert result.parameters == count_parameters(pruned)


def test_sub_networks_run_in_place_give_the_outputs_of_the_pruned_model_to_the_bit(head: str) -> None:
    model, batch = build(head), batch_for(head)
    cutter = Cutter(model)
    kept = [keep_all_stacks(model, layers) for layers in ([0, 1, 2, 3], [0, 1, 3], [0, 3], [1, 2], [2])]
    with torch.no_grad(), shared_prefixes(cutter, model.device) as runner:
        outputs = [runner.run(layers, lambda: output_of(model, batch))[0] for layers in kept]
    for layers, output in zip(kept, outputs, strict=True):
        pruned = build(head)
        prune_layers(pruned, layers)
        with torch.no_grad():
            assert torch.equal(output_of(pruned, batch), output)
    assert len({output.double().sum().item() for output in outputs}) == len(kept)


def test_every_prefix_runs_once_a_batch() -> None:
    model = build("BertForSequenceClassification")
    runs = []
    for layer in model.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: runs.append(1))
    results = evaluate_depths(
        model, labelled("BertForSequenceClassification"), depths=every_sub_network({"encoder": DEPTH}), progress=False
    )
    prefixes = 2**DEPTH - 1  # every non-empty set is the one path to itself
    assert len(runs) == 2 * prefixes
    assert sum(result.layer_forwards for result in results) == prefixes
    assert sum(result.depth for result in results) == DEPTH * 2 ** (DEPTH - 1)  # what running each alone would take


def test_records_that_are_handed_out_as_they_come_cost_no_further_layer_forward() -> None:
    model, data = build("BertForSequenceClassification"), labelled("BertForSequenceClassification")
    kept, seen = every_sub_network({"encoder": DEPTH}), []
    at_once = Evaluator(model, data).measure(kept, progress=False)
    in_turn = Evaluator(model, data).measure(kept, progress=False, done=seen.append)
    assert [result.metrics for result in in_turn] == [result.metrics for result in at_once]
    assert sum(result.layer_forwards for result in in_turn) == 2**DEPTH - 1
    assert [len(results) for results in seen] == [1, 5, 9, 13, 15]
    assert seen[-1] == in_turn


def test_the_walk_shares_the_encoder_over_all_decoders() -> None:
    model = build("BartForConditionalGeneration")
    depths = every_sub_network(depths_of(model), "decoder")
    results = evaluate_depths(model, labelled("BartForConditionalGeneration", 1), depths=depths, progress=False)
    assert sum(result.layer_forwards for result in results) == DEPTH + 2**DEPTH - 1


def test_walking_order_keeps_prefixes_together() -> None:
    kept = [{"encoder": (1,)}, {"encoder": (0, 1)}, {"encoder": (0,)}, {"encoder": (0, 1, 2)}]
    assert [kept[place]["encoder"] for place in in_walking_order(kept)] == [(0,), (0, 1), (0, 1, 2), (1,)]


def test_the_model_is_as_before_also_after_an_error(head: str) -> None:
    model = build(head).train()
    inject_layerdrop(model, 0.5)
    batch = batch_for(head)
    evaluate_depths(model, labelled(head), depths=[None], progress=False)  # BERT notes the kind of problem
    before = dict(model.config.to_dict())
    classes = [type(module) for module in model.modules()]

    def fail(_: object) -> float:
        raise RuntimeError("no metric today")

    with pytest.raises(RuntimeError, match="no metric today"):
        evaluate_depths(model, labelled(head), depths=[keep_all_stacks(model, [1, 2])], metric=fail, progress=False)
    with pytest.raises(ValueError, match="input_ids"):
        evaluate_depths(model, [{"attention_mask": batch["attention_mask"]}], depths=[None], progress=False)
    assert model.training
    assert model.config.to_dict() == before
    assert [type(module) for module in model.modules()] == classes
    assert all(depth == DEPTH for depth in depths_of(model).values())


def test_records_are_frozen_and_survive_json() -> None:
    result = evaluate_depths(
        build("BertForSequenceClassification"), labelled("BertForSequenceClassification"), depths=[2], progress=False
    )[0]
    assert result.keep_layers == {"encoder": (0, 3)}
    assert result.depth == 2
    assert result.seconds_per_batch > 0
    assert SubNetworkResult.from_dict(result.to_dict()) == result
    with pytest.raises(AttributeError):
        result.parameters = 1


def test_a_trainer_measures_what_trainer_evaluate_measures(tmp_path: Path) -> None:
    model = build("BertForSequenceClassification")
    trainer = Trainer(model, arguments(tmp_path), eval_dataset=examples(), compute_metrics=accuracy)
    whole, half = evaluate_depths(trainer, depths=[DEPTH, [1, 2]], progress=False)
    assert whole.metrics["accuracy"] == trainer.evaluate()["eval_accuracy"]
    assert whole.metrics["loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
    prune_layers(model, [1, 2])
    assert half.metrics["accuracy"] == trainer.evaluate()["eval_accuracy"]
    assert half.metrics["loss"] != whole.metrics["loss"]


def test_several_evaluation_sets_keep_their_names(tmp_path: Path) -> None:
    sets = {"first": examples(6), "second": examples(12)}
    trainer = Trainer(
        build("BertForSequenceClassification"), arguments(tmp_path), eval_dataset=sets, compute_metrics=accuracy
    )
    metrics = evaluate_depths(trainer, depths=[2], progress=False)[0].metrics
    assert set(metrics) == {"first_accuracy", "first_loss", "second_accuracy", "second_loss"}


def test_generation_is_scored_as_the_pruned_model_generates(tmp_path: Path) -> None:
    model = build("BartForConditionalGeneration")
    data = [
        {name: value[0] for name, value in batch_for("BartForConditionalGeneration", seed).items()} for seed in range(4)
    ]
    data = [{**row, "labels": row["input_ids"]} for row in data]
    settings = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=8,
    )

    def score(evaluated: object) -> dict[str, float]:
        return {"tokens": float(evaluated.predictions.clip(0).sum())}

    trainer = Seq2SeqTrainer(model, settings, eval_dataset=data, compute_metrics=score)
    kept = {"encoder": [1, 3], "decoder": [2, 3]}
    whole, cut = evaluate_depths(trainer, depths=[None, kept], progress=False)
    prune_layers(model, kept)
    assert cut.metrics["tokens"] == trainer.evaluate()["eval_tokens"]
    assert cut.metrics["tokens"] != whole.metrics["tokens"]


@pytest.mark.parametrize(
    ("metric", "names"), [("accuracy", {"accuracy", "loss"}), ("loss", {"loss"}), (None, {"accuracy", "loss"})]
)
def test_metrics_by_name(metric: str | None, names: set[str]) -> None:
    head = "BertForSequenceClassification"
    model, data = build(head), labelled(head, 1)
    found = evaluate_depths(model, data, depths=[DEPTH], metric=metric, progress=False)[0].metrics
    assert set(found) == names
    if "accuracy" in names:
        with torch.no_grad():
            assert found["accuracy"] == float((model(**data[0]).logits.argmax(-1) == LABELS).double().mean())


def test_bad_input_is_refused_before_anything_runs() -> None:
    model = build("BertForSequenceClassification")
    data = labelled("BertForSequenceClassification")
    for layer in model.bert.encoder.layer:
        layer.forward = None  # nothing may run
    with pytest.raises(KeepLayersError, match="4 layers"):
        evaluate_depths(model, data, depths=[2, 9], progress=False)
    with pytest.raises(TaskError, match="did you mean 'accuracy'"):
        evaluate_depths(model, data, depths=[2], metric="acuracy", progress=False)
    with pytest.raises(TaskError, match="no dataset"):
        evaluate_depths(model, depths=[2], progress=False)
    with pytest.raises(TaskError, match="depths is empty"):
        evaluate_depths(model, data, depths=[], progress=False)


def test_a_metric_without_labels_is_an_error_not_an_empty_record() -> None:
    batches = [batch_for("BertForSequenceClassification")]
    with pytest.raises(TaskError, match="labels"):
        evaluate_depths(build("BertForSequenceClassification"), batches, depths=[2], metric="accuracy", progress=False)


@pytest.mark.parametrize("depths", [3, "3,2"])
def test_depths_are_a_list(depths: object) -> None:
    with pytest.raises(TaskError, match="depths is"):
        evaluate_depths(build("BertForSequenceClassification"), [], depths=depths, progress=False)


def test_trainers_own_preprocessing_of_logits_is_used(tmp_path: Path) -> None:
    trainer = Trainer(
        build("BertForSequenceClassification"),
        arguments(tmp_path),
        eval_dataset=examples(),
        compute_metrics=lambda seen: {"classes": float(seen.predictions.ndim), "mean": float(seen.predictions.mean())},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    found = evaluate_depths(trainer, depths=[DEPTH], progress=False)[0].metrics
    assert found["classes"] == 1
    assert found["mean"] == trainer.evaluate()["eval_mean"]


def test_an_evaluate_metric_of_a_regression_compares_numbers() -> None:
    model = build("BertForSequenceClassification", num_labels=1)
    data = [{**batch, "labels": torch.tensor([0.5, 2.0, 3.5])} for batch in labelled("BertForSequenceClassification")]
    both = [
        evaluate_depths(model, data, depths=[DEPTH], metric=metric, progress=False)[0].metrics["pearson"]
        for metric in ("pearson", load_metric("pearson"))
    ]
    assert both[0] == both[1] != 0


def test_a_sub_network_of_an_injected_model_drops_nothing_and_saves_as_the_pruned_model(tmp_path: Path) -> None:
    model, batch = build("BertForSequenceClassification"), batch_for("BertForSequenceClassification")
    inject_layerdrop(model, 0.5)
    model.train()
    with sub_network(model, [1, 3]):
        first = output_of(model, batch)
        assert all(torch.equal(first, output_of(model, batch)) for _ in range(5))
        model.save_pretrained(tmp_path)
        with pytest.raises(LayerDropStateError, match="with block"):
            prune_layers(model, [0])
    reloaded = load_checkpoint(tmp_path, attn_implementation="eager")
    assert torch.equal(output_of(reloaded, batch), first)
    assert reloaded.config.hf_layerdrop["rates"] == {"encoder": [0.0, 0.0]}
    assert model.config.hf_layerdrop["rates"] == {"encoder": [0.5] * DEPTH}
    assert "keep_layers" not in model.config.hf_layerdrop


def test_an_empty_dataset_is_an_error() -> None:
    with pytest.raises(TaskError, match="no batches"):
        evaluate_depths(build("BertForSequenceClassification"), [], depths=[2], progress=False)


def test_names_of_depths_in_metric_keys() -> None:
    assert depth_name({"encoder": (0, 2, 5)}, {"encoder": 6}) == "depth_3"
    assert depth_name({"encoder": (0, 1)}, {"encoder": 6}) == "depth_0-1"
    both = {"encoder": (0, 1, 2, 3, 4, 5), "decoder": (0, 2, 5)}
    assert depth_name(both, {"encoder": 6, "decoder": 6}) == "depth_encoder6_decoder3"


def test_no_weight_is_copied() -> None:
    model = build("BertForSequenceClassification")
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    seen: list[int] = []
    model.bert.encoder.layer[1].register_forward_hook(
        lambda layer, *_: seen.extend(parameter.data_ptr() for parameter in nn.Module.parameters(layer))
    )
    evaluate_depths(model, labelled("BertForSequenceClassification", 1), depths=[[1]], progress=False)
    assert seen
    assert set(seen) <= set(pointers)


def test_a_part_that_hands_on_an_inner_hidden_state_is_measured_as_the_pruned_model() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, initializer_range=0.3, initializer_factor=5.0, **sizes)
    text = LlamaConfig(vocab_size=64, initializer_range=0.3, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63, vision_feature_layer=-2)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(4, 60, (2, 20))
    ids[:, 1:17] = 63
    batch = {"input_ids": ids, "labels": ids.clone(), "pixel_values": torch.randn(2, 3, 32, 32)}
    depths = ["vision=0,1,2", "vision=0,1,3", "vision=0,1,2;text=0,1", "text=0,1,3"]
    found = [result.metrics["loss"] for result in evaluate_depths(model, [batch], depths=depths, progress=False)]
    expected = []
    for spec in depths:
        cut = copy.deepcopy(model)
        prune_layers(cut, spec)
        with torch.no_grad():
            expected.append(cut(**batch, use_cache=False).loss.item())
    assert found == pytest.approx(expected, abs=1e-6)
    assert len({round(loss, 5) for loss in expected}) > 2


def test_hidden_states_that_are_first_asked_for_in_a_sub_network_are_complete_afterwards() -> None:
    model = build("BertModel")
    batch = {"input_ids": torch.arange(4, 10)[None]}
    for kept in ([0, 1], [2, 3]):
        with sub_network(model, kept):
            assert len(model(**batch, output_hidden_states=True).hidden_states) == 3
    assert len(model(**batch, output_hidden_states=True).hidden_states) == DEPTH + 1
    assert len(model(**batch, output_attentions=True).attentions) == DEPTH
