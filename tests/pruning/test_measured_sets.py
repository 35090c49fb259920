"""``best:n`` and ``fastest:share`` wherever layers are kept: the cut is that of the table, and not the spread one."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import ONE_EACH, assert_same_tensors, batch_for, build, cut_by_hand, keep_all_stacks
from hf_layerdrop import (
    AutoLayerDropModelForCausalLM,
    AutoLayerDropModelForSequenceClassification,
    CheckpointError,
    DepthEvaluationCallback,
    KeepLayersError,
    LayerDropBertForSequenceClassification,
    evaluate_depths,
    load_checkpoint,
    prune_layers,
    student_of,
    sub_network,
    write_recommended,
)
from hf_layerdrop.architectures.stacks import depths_of
from tables import table_for

BEST = [1, 2]  # of two layers, by the table
BERT = "BertForSequenceClassification"


@pytest.fixture
def saved(tmp_path):
    model = build(BERT)
    model.save_pretrained(tmp_path)
    write_recommended(table_for(), tmp_path)
    return tmp_path


def by_hand(model, kept=BEST):
    return cut_by_hand(model, keep_all_stacks(model, kept)).state_dict()


@pytest.mark.parametrize("head", ONE_EACH)
@pytest.mark.parametrize(("spec", "kept"), [("best:2", BEST), ("fastest:0.99", [0, 1, 3])])
def test_loading_keeps_the_measured_set(head, spec, kept, tmp_path):
    source = build(head)
    source.save_pretrained(tmp_path)
    write_recommended(table_for(tuple(depths_of(source))), tmp_path)
    model = load_checkpoint(tmp_path, keep_layers=spec)
    assert_same_tensors(model.state_dict(), by_hand(source, kept))
    spread = load_checkpoint(tmp_path, keep_layers=len(kept))
    if spec == "best:2":
        assert any(not torch.equal(one, other) for one, other in both(model, spread))
    noted = model.config.hf_layerdrop
    assert (noted["strategy"], noted["metric"]) == (spec, "accuracy")
    assert noted["score"] == {"best:2": 0.8, "fastest:0.99": 0.895}[spec]


def both(model, other):
    return zip(model.state_dict().values(), other.state_dict().values(), strict=True)


@pytest.mark.parametrize("cls", [LayerDropBertForSequenceClassification, AutoLayerDropModelForSequenceClassification])
def test_every_class_reads_it(cls, saved):
    source = build(BERT)
    model = cls.from_pretrained(saved, keep_layers="best:2")
    assert_same_tensors(model.state_dict(), by_hand(source))


def test_a_family_without_classes_of_ours(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=60, initializer_range=0.3, **shape))
    source.save_pretrained(tmp_path)
    write_recommended(table_for(("layers",)), tmp_path)
    model = AutoLayerDropModelForCausalLM.from_pretrained(tmp_path, keep_layers="best:2")
    assert len(model.model.layers) == len(BEST)
    for layer, place in zip(model.model.layers, BEST, strict=True):
        assert_same_tensors(layer.state_dict(), source.model.layers[place].state_dict())


def test_a_model_in_memory_asks_where_it_came_from(saved):
    model = load_checkpoint(saved)
    batch = {**batch_for(BERT), "labels": torch.tensor([0, 1, 1])}
    with sub_network(model, "best:2") as kept:
        assert kept == {"encoder": (1, 2)}
    results = evaluate_depths(model, [batch], depths=["best:2", 2, "fastest:0.99"], progress=False)
    assert [result.keep_layers["encoder"] for result in results] == [(1, 2), (0, 3), (0, 1, 3)]
    assert student_of(model, "best:2").config.hf_layerdrop["keep_layers"] == {"encoder": BEST}
    prune_layers(model, "best:2")
    assert_same_tensors(model.state_dict(), by_hand(build(BERT)))


def test_a_model_that_was_cut_is_not_what_was_measured(saved):
    model = load_checkpoint(saved, keep_layers=3)
    with pytest.raises(KeepLayersError, match="4 layers of the encoder, but this model has 3 layers"):
        prune_layers(model, "best:2")
    assert depths_of(model) == {"encoder": 3}


def test_a_model_from_nowhere_says_so():
    with pytest.raises(KeepLayersError, match="does not know of one that it was loaded from"):
        prune_layers(build(BERT), "best:2")


def test_without_a_table_nothing_is_read(saved):
    (saved / "layerdrop.json").unlink()
    for spec in ("best:2", "fastest:0.9"):
        with pytest.raises(KeepLayersError, match="no recommended sets beside"):
            load_checkpoint(saved, keep_layers=spec)


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"version": 9}', '{"version": 1}'])
def test_a_broken_table_breaks_nothing_else(broken, saved):
    (saved / "layerdrop.json").write_text(broken)
    assert_same_tensors(load_checkpoint(saved, keep_layers=2).state_dict(), by_hand(build(BERT), [0, 3]))
    assert_same_tensors(load_checkpoint(saved).state_dict(), build(BERT).state_dict())
    with pytest.raises(CheckpointError, match=r"layerdrop\.json") as caught:
        load_checkpoint(saved, keep_layers="best:2")
    assert "\n" not in str(caught.value)


def test_a_table_of_another_depth_is_refused(saved):
    write_recommended(table_for().cut({"encoder": (0, 1, 3)}), saved)
    with pytest.raises(KeepLayersError, match="3 layers of the encoder, but this model has 4 layers"):
        load_checkpoint(saved, keep_layers="best:2")


def test_a_callback_keeps_to_the_sets_of_the_beginning(saved, tmp_path):
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments

    class Rows(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, place):
            return {"input_ids": torch.arange(5, 14) + place, "labels": place % 2}

    class Loses(DepthEvaluationCallback):
        def on_step_end(self, *args, **kwargs):
            (saved / "layerdrop.json").unlink(missing_ok=True)

    arguments = TrainingArguments(
        tmp_path / "out", max_steps=2, eval_strategy="steps", eval_steps=1, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(load_checkpoint(saved), arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.add_callback(Loses(["best:2"]))
    trainer.train()
    assert sum("eval_depth_1-2_loss" in entry for entry in trainer.state.log_history) == 2
