"""Sentence Transformers: its own trainer and losses, several forwards a step, and what it saves and loads."""

import random

import pytest
import torch
from transformers import BertTokenizer

from conftest import build, recorded_runs
from hf_layerdrop import DepthEvaluationCallback, LayerDropConfig, inject_layerdrop, prune_layers
from integrations import needed, training_arguments

library = needed("sentence_transformers")
losses = needed("sentence_transformers.sentence_transformer.losses")

SENTENCES = ["a man plays the guitar", "the dog sleeps on the sofa", "a child reads"]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()} | {"woman", "book", "park", "cat", "runs"})
LOSSES = {
    "several forwards": losses.MultipleNegativesRankingLoss,
    "cached": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "of several layers": lambda model: losses.AdaptiveLayerLoss(model, losses.MultipleNegativesRankingLoss(model)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(vocab=str(path / "vocab.txt"), model_max_length=32).save_pretrained(path)
    build("BertModel").save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    from sentence_transformers.sentence_transformer import modules

    return library.SentenceTransformer(modules=[modules.Transformer(str(folder)), modules.Pooling(16)], device="cpu")


def trained(model, loss, folder, steps=4, **changes):
    """Train on pairs, and return which layers ran in each step, in their order, with the trainer."""
    from datasets import Dataset

    draw = random.Random(0)
    pairs = [
        {"anchor": " ".join(draw.sample(WORDS, 5)), "positive": " ".join(draw.sample(WORDS, 4))} for _ in range(24)
    ]
    arguments = training_arguments(
        folder,
        library.SentenceTransformerTrainingArguments,
        max_steps=steps,
        per_device_train_batch_size=6,
        learning_rate=1e-3,
        **changes,
    )
    trainer = library.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(pairs), loss=loss(model)
    )
    by_step = []
    step_of = trainer.training_step

    def counted(*args, **kwargs):
        with recorded_runs(model[0].auto_model) as runs:
            found = step_of(*args, **kwargs)
        by_step.append(runs["encoder"])
        return found

    trainer.training_step = counted
    trainer.train()
    return by_step, trainer


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_its_trainer_drops_layers_with_its_losses(loss, model, tmp_path):
    inject_layerdrop(model, LayerDropConfig((0, 1, 0.5, 0.5), seed=3))
    frozen = [weight.clone() for weight in model[0].auto_model.encoder.layer[1].parameters()]
    by_step, _ = trained(model, loss, tmp_path, weight_decay=0.1)
    assert {layer for ran in by_step for layer in ran} == {0, 2, 3}
    assert len({tuple(ran) for ran in by_step}) > 1
    # no gradient at all: AdamW's decay would have moved them
    assert all(map(torch.equal, model[0].auto_model.encoder.layer[1].parameters(), frozen))


def test_a_cached_loss_repeats_the_layers_of_its_first_pass_in_every_part(model, tmp_path):
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    by_step, trainer = trained(model, LOSSES["cached"], tmp_path, steps=5)
    for ran in by_step:
        kept = sorted(set(ran))
        assert ran == kept * 8  # two columns of two parts, without gradient and with it
    assert len({tuple(ran) for ran in by_step}) > 1
    logged = [entry["layerdrop_layers_used"] for entry in trainer.state.log_history if "layerdrop_rate" in entry]
    assert logged == [len(set(ran)) for ran in by_step]


@pytest.mark.parametrize("loss", ["several forwards", "cached"])
def test_rates_of_0_and_1_train_as_the_pruned_model(loss, model, folder, tmp_path):
    from sentence_transformers.sentence_transformer import modules

    cut = library.SentenceTransformer(modules=[modules.Transformer(str(folder)), modules.Pooling(16)], device="cpu")
    prune_layers(cut, [0, 2])
    inject_layerdrop(model, LayerDropConfig((0, 1, 0, 1)))
    for each in (model, cut):
        trained(each, LOSSES[loss], tmp_path)
    prune_layers(model, [0, 2])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, cut.state_dict()[name]), name


def test_a_pruned_model_is_saved_and_loaded_by_the_library_alone(model, tmp_path):
    whole = model.encode(SENTENCES)
    inject_layerdrop(model, 0.5)
    prune_layers(model, [0, 3])
    expected = model.encode(SENTENCES)
    model.save(str(tmp_path / "shallow"))
    again = library.SentenceTransformer(str(tmp_path / "shallow"), device="cpu")
    assert (again.encode(SENTENCES) == expected).all()
    assert abs(expected - whole).max() > 1e-2
    assert again[0].auto_model.config.num_hidden_layers == 2
    assert type(again[0].auto_model).__module__.startswith("transformers.")


def test_its_evaluation_gives_every_sub_network_the_same_negatives(model, tmp_path):
    from datasets import Dataset

    inject_layerdrop(model, LayerDropConfig(0.3, seed=0))
    draw = random.Random(0)
    pairs = Dataset.from_list(
        [{"anchor": " ".join(draw.sample(WORDS, 5)), "positive": " ".join(draw.sample(WORDS, 4))} for _ in range(14)]
    )
    arguments = training_arguments(
        tmp_path,
        library.SentenceTransformerTrainingArguments,
        max_steps=4,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        eval_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[DepthEvaluationCallback([4, 2])],
    )
    trainer.train()
    history = trainer.state.log_history
    whole = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert [entry["eval_depth_4_loss"] for entry in history if "eval_depth_4_loss" in entry] == whole
    cut = [entry["eval_depth_2_loss"] for entry in history if "eval_depth_2_loss" in entry]
    assert len(cut) == len(whole) == 2
    assert cut != whole
