import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    TrainingArguments,
)

from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, KeepLayersError, OutputExistsError
from hf_layerdrop.results.table import read_results
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.schedules import make_schedule
from hf_layerdrop.search.learned_rates import learned_keep_layers
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.embedded import embedded_sst2
from hf_layerdrop.tasks.registry import TASKS
from hf_layerdrop.training.train import check_output, halved_depths, train
from light import run_lightly

LAYERS = 4
INNER = LayerDropConfig((0.0, 1.0, 1.0, 0.0))  # drops layers 1 and 2 in every step
STEPS = 4


@pytest.fixture(scope="module")
def sentences():
    return embedded_sst2()["train"][:64]


@pytest.fixture(scope="module")
def model(tmp_path_factory, sentences):
    """A pretrained encoder as it comes from the Hub, but tiny: four layers, no head, a tokenizer of whole words."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = sorted({word for sentence in sentences["sentence"] for word in sentence.split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words) + 5,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory, sentences):
    """The same rows as files for tasks of one text, of two texts and of a score."""
    folder = tmp_path_factory.mktemp("data")
    texts, labels = sentences["sentence"], sentences["label"]
    rows = {
        "sst2": [{"sentence": text, "label": label} for text, label in zip(texts, labels, strict=True)],
        "mnli": [{"premise": text, "hypothesis": text[:9], "label": number % 3} for number, text in enumerate(texts)],
        "stsb": [{"sentence1": text, "sentence2": text[:9], "label": number % 6} for number, text in enumerate(texts)],
    }
    for name, table in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    (folder / "mnli_mm.jsonl").write_text("\n".join(map(json.dumps, rows["mnli"][:7])))
    return folder


@pytest.fixture(scope="module")
def data(files):
    return load_task_data(TASKS["sst2"], train_file=files / "sst2.jsonl", validation_file=files / "sst2.jsonl")


def settings(output_dir, **changes):
    plain = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    return TrainingArguments(output_dir=str(output_dir), use_cpu=True, disable_tqdm=True, **{**plain, **changes})


def weights_that_moved(before, after):
    """Numbers of the layers of which any weight changed, and whether the token embeddings did."""
    old = AutoModelForSequenceClassification.from_pretrained(before).state_dict()
    new = AutoModelForSequenceClassification.from_pretrained(after).state_dict()
    moved = [name for name in new if "encoder.layer" in name and not torch.equal(old[name], new[name])]
    embeddings = "bert.embeddings.word_embeddings.weight"
    return {int(name.split(".")[3]) for name in moved}, not torch.equal(old[embeddings], new[embeddings])


def test_layers_dropped_in_every_step_keep_their_weights(tmp_path, model, data):
    result = train(data, model, settings(tmp_path / "run"), layerdrop=INNER)
    assert weights_that_moved(model, result.output_dir) == ({0, 3}, True)


def test_the_schedule_moves_the_rates(tmp_path, model, data):
    never = make_schedule("step", at=1.0)
    result = train(data, model, settings(tmp_path / "run"), layerdrop=INNER, schedule=never, freeze_embeddings=True)
    assert weights_that_moved(model, result.output_dir) == ({0, 1, 2, 3}, False)


def test_it_ends_with_the_chosen_depths_and_a_plain_checkpoint(tmp_path, model, data):
    result = train(data, model, settings(tmp_path / "run"), layerdrop=LayerDropConfig(0.5), eval_depths=[4, 2, [1]])
    assert [dict(record.keep_layers) for record in result.results] == [
        {"encoder": (0, 1, 2, 3)},
        {"encoder": (0, 3)},
        {"encoder": (1,)},
    ]
    assert len({record.metrics["loss"] for record in result.results}) == 3
    assert read_results(result.results_file) == result.results
    config = json.loads((result.output_dir / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["hf_layerdrop"]["trained_with"]["seed"] == 42  # of TrainingArguments
    assert AutoTokenizer.from_pretrained(result.output_dir)("a").input_ids


def test_the_final_table_is_what_plain_transformers_scores(tmp_path, model, data):
    result = train(data, model, settings(tmp_path / "run"), layerdrop=LayerDropConfig(0.5))
    assert [record.depth for record in result.results] == [4, 2, 1]
    plain = AutoModelForSequenceClassification.from_pretrained(result.output_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir)
    rows = data.validation["validation"]
    inputs = tokenizer(list(rows["sentence"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        right = plain(**inputs).logits.argmax(-1) == torch.tensor(rows["labels"][:])
    assert result.results[0].metrics["accuracy"] == pytest.approx(right.float().mean().item())


def test_an_encoder_and_a_decoder_are_trained_and_cut_together(tmp_path, model, data):
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.sep_token_id,
    )
    BartModel(config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    rates = LayerDropConfig({"encoder": [0.0, 1.0, 0.0, 1.0], "decoder": [1.0, 0.0]})
    result = train(data, str(tmp_path / "bart"), settings(tmp_path / "run"), layerdrop=rates)
    assert [dict(record.keep_layers) for record in result.results] == halved_depths({"encoder": 4, "decoder": 2})
    old, new = BartModel.from_pretrained(tmp_path / "bart"), BartModel.from_pretrained(result.output_dir)
    moved = {
        f"{stack}.{number}"
        for stack in ("encoder", "decoder")
        for number, layer in enumerate(new.get_submodule(stack).layers)
        if not torch.equal(layer.fc1.weight, old.get_submodule(stack).layers[number].fc1.weight)
    }
    assert moved == {"encoder.0", "encoder.2", "decoder.1"}


def test_without_layerdrop_it_is_plain_finetuning(tmp_path, model, data):
    result = train(data, model, settings(tmp_path / "run"), eval_depths=[4])
    assert weights_that_moved(model, result.output_dir) == ({0, 1, 2, 3}, True)


def test_both_sets_of_mnli_are_in_the_table(tmp_path, model, files):
    sets = [files / "mnli.jsonl", files / "mnli_mm.jsonl"]
    data = load_task_data(TASKS["mnli"], train_file=files / "mnli.jsonl", validation_file=sets)
    result = train(data, model, settings(tmp_path / "run", max_steps=1), eval_depths=[4, 1])
    for record in result.results:
        assert {"accuracy", "accuracy_mm"} <= set(record.metrics)
        assert record.metrics["accuracy_mm"] * 7 == pytest.approx(round(record.metrics["accuracy_mm"] * 7))
        assert record.metrics["accuracy"] * 64 == pytest.approx(round(record.metrics["accuracy"] * 64))


def test_a_regression_has_one_output(tmp_path, model, files):
    data = load_task_data(TASKS["stsb"], train_file=files / "stsb.jsonl", validation_file=files / "stsb.jsonl")
    result = train(data, model, settings(tmp_path / "run", max_steps=1), eval_depths=[4])
    assert {"pearson", "spearmanr"} <= set(result.results[0].metrics)
    assert AutoModelForSequenceClassification.from_pretrained(result.output_dir).num_labels == 1


def test_a_resumed_run_ends_like_one_that_went_through(tmp_path, model, data):
    options = {"layerdrop": LayerDropConfig(0.5), "eval_depths": [4]}
    whole = train(data, model, settings(tmp_path / "whole", save_steps=2, save_strategy="steps"), **options)
    start = tmp_path / "whole" / "checkpoint-2"
    resumed = train(data, model, settings(tmp_path / "resumed", resume_from_checkpoint=str(start)), **options)
    for name, value in whole.trainer.model.state_dict().items():
        assert torch.equal(value, resumed.trainer.model.state_dict()[name]), name


def test_wrong_input_is_found_before_anything_is_written(tmp_path, model, data):
    output = tmp_path / "run"
    with pytest.raises(KeepLayersError, match="9"):
        train(data, model, settings(output), eval_depths=[9])
    with pytest.raises(CheckpointError, match="nowhere"):
        train(data, str(tmp_path / "nowhere"), settings(output))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train(data, model, settings(output, resume_from_checkpoint="last"))
    assert not output.exists()


def test_a_folder_in_use_needs_a_word(tmp_path):
    output = tmp_path / "run"
    for step in (9, 10, 11):
        (output / f"checkpoint-{step}").mkdir(parents=True)
    for step in (9, 10):
        (output / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        torch.save({}, output / f"checkpoint-{step}" / "rng_state.pth")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output(output)
    assert check_output(output, overwrite=True) is None
    assert check_output(output, resume="last") == output / "checkpoint-10"  # 11 was cut short
    with pytest.raises(CheckpointError, match="checkpoint-11"):
        check_output(output, resume=str(output / "checkpoint-11"))


def test_overwriting_leaves_no_old_checkpoint_but_other_files(tmp_path, model, data):
    output = tmp_path / "run"
    (output / "checkpoint-999").mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    train(data, model, settings(output, max_steps=1), overwrite=True, eval_depths=[4])
    assert not (output / "checkpoint-999").exists()
    assert (output / "notes.txt").read_text() == "mine"


def test_default_depths_halve_every_stack():
    assert halved_depths({"encoder": 12, "decoder": 6}) == [
        {"encoder": tuple(range(12)), "decoder": tuple(range(6))},
        {"encoder": (0, 2, 4, 6, 8, 11), "decoder": (0, 2, 5)},
        {"encoder": (0, 5, 11), "decoder": (0, 5)},
        {"encoder": (11,), "decoder": (5,)},
    ]


# The command.


@pytest.fixture
def command(model, files, tmp_path):
    data = ["--train-file", str(files / "sst2.jsonl"), "--validation-file", str(files / "sst2.jsonl")]
    output = ["--output_dir", str(tmp_path / "run")]
    return ["train", "--task", "sst2", "--model", model, *data, *output]


def test_the_command_trains_prints_rates_and_ends_with_the_table(command, tmp_path, capsys, model):
    flags = ["--max-steps", "4", "--learning_rate=0.01", "--use_cpu", "--report_to", "none"]
    assert run([*command, "--layerdrop", "0,1,1,0", "--eval-depths", "4,1", *flags]) == 0
    printed = capsys.readouterr().out
    assert "0 1 1 0" in printed
    assert "accuracy" in printed
    assert [record.depth for record in read_results(tmp_path / "run" / "depth_results.json")] == [4, 1]
    assert weights_that_moved(model, tmp_path / "run") == ({0, 3}, True)


def test_the_printed_rates_follow_the_schedule(command, capsys):
    flags = ["--max-steps", "1", "--use_cpu", "--report_to", "none", "--eval-depths", "1"]
    assert run([*command, "--layerdrop", "0.4", "--never-drop", "0,-1", "--schedule", "linear", *flags]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "encoder" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["encoder", "4", "0 each", "0 0.4 0.4 0", "3.6"]


@pytest.mark.parametrize("hidden", [False, True])
def test_disable_tqdm_hides_every_progress_bar(hidden, command, capsys):
    flags = ["--max-steps", "1", "--use_cpu", "--report_to", "none", "--eval-depths", "2"]
    assert run([*command, *flags, *(["--disable_tqdm"] if hidden else [])]) == 0
    assert ("batch/s]" in capsys.readouterr().err) is not hidden


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_config_file_holds_any_option_and_the_command_line_wins(command, tmp_path, ending):
    values = {
        "layerdrop": [0, 1, 1, 0],
        "eval-depths": [4, 1],
        "freeze_embeddings": True,
        "max_steps": 50,
        "learning_rate": "1e-2",
        "use_cpu": True,
        "report_to": "none",
        "lr_scheduler_kwargs": {},
    }
    config = tmp_path / f"config.{ending}"
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    config.write_text(json.dumps(values) if ending == "json" else "\n".join(lines))
    assert run([*command, "--config", str(config), "--max_steps", "2", "--eval-depths", "2"]) == 0
    assert [record.depth for record in read_results(tmp_path / "run" / "depth_results.json")] == [2]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["max_steps"] == 2
    saved = torch.load(tmp_path / "run" / "training_args.bin", weights_only=False)
    assert saved.learning_rate == 0.01
    assert weights_that_moved(tmp_path / "run" / "checkpoint-2", tmp_path / "run") == (set(), False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "sst3"], "nearest: sst2"),
        (["--learning_rat", "1"], "did you mean --learning_rate"),
        (["--eval_depths", "1"], "did you mean --eval-depths"),
        (["--max_steps", "many"], "invalid int value: 'many'; train --help-all"),
        (["stray"], "'stray'"),
        (["--layerdrop", "1.5"], "from 0"),
        (["--layerdrop", "much"], "'much'"),
        (["--layerdrop", "0.1,0.2"], "4 layers"),
        (["--layerdrop", "0.2", "--shape", "round"], "'round'"),
        (["--shape", "linear"], "--layerdrop"),
        (["--layerdrop", "0.2", "--never-drop", "9"], "9"),
        (["--schedule", "wobbly"], "'wobbly'"),
        (["--schedule", "linear:end=two"], "linear:start=0"),
        (["--eval-depths", "9"], "9"),
        (["--train-file", "none.csv"], "none.csv"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--resume_from_checkpoint"], "no complete checkpoint"),
        (["--output_dir", "."], "not empty"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(command, tmp_path, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run([*command, *arguments]) == 2
    output, errors = capsys.readouterr()
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert not output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rte: 1", "did you mean --learning_rate"),
        ("eval_dephts: 1", "did you mean --eval-depths"),
        ("max_steps: 1.5", "invalid int value: '1.5'"),
        ("optim: adam", "adamw_torch"),
        ("learning_rate: [1, 2]", "'2' belongs to no option"),
    ],
)
def test_a_wrong_line_in_the_config_file_is_one_line(command, tmp_path, line, said, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(line)
    assert run([*command, "--config", str(config)]) == 2
    output, errors = capsys.readouterr()
    assert said in errors
    assert len(errors.splitlines()) == 1
    assert not output
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(("name", "ours"), [("train", "--eval-depths"), ("distill", "--soft-weight")])
def test_help_is_quick_and_help_all_adds_the_flags_of_trainer(name, ours, capsys):
    code, output, _ = run_lightly(name, "--help")
    assert code == 0
    assert ours in output
    assert "--warmup_steps" not in output
    assert run([name, "--help-all"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert ours in output
    assert "--warmup_steps" in output
    assert "(default: 32)" in output  # of ours: a batch
    assert "(default: as eval_strategy)" in output


def test_the_card_of_a_sub_network_names_the_data_that_it_was_measured_on(tmp_path, model, data):
    train(data, model, settings(tmp_path / "run"), layerdrop=LayerDropConfig(0.5), eval_depths=[4, 2])
    assert run(["prune", str(tmp_path / "run"), "--keep-layers", "2", "--output", str(tmp_path / "small")]) == 0
    result = ModelCard.load(tmp_path / "small" / "README.md").data.eval_results[0]
    # rows of a file, whatever they hold, are not the data set of the Hub
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("local-sst2", None, "validation")
    assert result.metric_type == "accuracy"


@pytest.mark.parametrize("files", [("matched.csv", "mismatched.csv"), ("matched.csv",)])
def test_the_card_of_a_model_of_mnli_tells_its_two_sets_apart(files, tmp_path, model):
    for name in ("matched.csv", "mismatched.csv"):
        (tmp_path / name).write_text(
            "premise,hypothesis,label\n" + "a film,a film,entailment\na,not,contradiction\n" * 4
        )
    data = [part for name in files for part in ("--validation-file", str(tmp_path / name))]
    flags = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--eval-depths", "2", "--output_dir"]
    words = ["train", "--task", "mnli", "--model", model, "--train-file", str(tmp_path / "matched.csv"), *data]
    assert run([*words, *flags, str(tmp_path / "run")]) == 0
    assert run(["prune", str(tmp_path / "run"), "--keep-layers", "2", "--output", str(tmp_path / "small")]) == 0
    results = ModelCard.load(tmp_path / "small" / "README.md").data.eval_results
    found = {(result.metric_type, result.dataset_split) for result in results}
    splits = ["validation_matched", "validation_mismatched"][: len(files)]
    assert found == {(metric, split) for metric in ("accuracy", "loss") for split in splits}


@pytest.mark.parametrize("steps", [1, 30])
def test_the_command_learns_rates_by_one_flag_and_writes_what_prune_reads(command, tmp_path, capsys, steps):
    folder = tmp_path / "run"
    flags = ["--max-steps", str(steps), "--learning_rate=0.01", "--use_cpu", "--report_to", "none"]
    assert run([*command, "--layerdrop", "0.25", "--sampler", "learned", "--eval-depths", "4,2", *flags]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "learned, 0.25" in printed
    assert (folder / "learned_rates.png").is_file()
    assert ("Nothing was learned" in printed) == (steps == 1)
    assert (folder / "learned_depth_2.json").is_file() == (steps == 30)
    if steps == 30:
        spec = str(folder / "learned_depth_2.json")
        assert run(["prune", str(folder), "--keep-layers", spec, "--output", str(tmp_path / "small")]) == 0
        kept = AutoConfig.from_pretrained(tmp_path / "small").hf_layerdrop["keep_layers"]
        expected = learned_keep_layers(AutoConfig.from_pretrained(folder), 2)
        assert {name: tuple(layers) for name, layers in kept.items()} == expected
