"""Tasks of lm-evaluation-harness at each depth: `make judging` has it; elsewhere what needs it is skipped."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hf_layerdrop import LayerDropError, inject_layerdrop, prune_layers
from hf_layerdrop.cli import run
from hf_layerdrop.errors import KeepLayersError, MissingExtraError, TaskError
from hf_layerdrop.evaluation.lm_eval_tasks import evaluate_lm_tasks
from hf_layerdrop.results.table import read_results

WORDS = [f"w{number}" for number in range(40)]
CHOICE = """
task: which_word
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITING = """
task: next_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["w0"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: make judging")


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["[UNK]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[EOS]",
        pad_token="[EOS]",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    draw = random.Random(0)
    rows = [
        {
            "question": " ".join(draw.sample(WORDS, 5)),
            "choices": draw.sample(WORDS, 3),
            "answer": draw.randrange(3),
            "written": " ".join(draw.sample(WORDS, 4)),
        }
        for _ in range(24)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("which_word", CHOICE), ("next_words", WRITING)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("FILE", str(file)))
    return tmp_path


@needs_harness
def test_each_depth_scores_what_the_cut_model_scores(task_folder: Path) -> None:
    model, tokenizer = language_model().train(), tokenizer_of_words()
    inject_layerdrop(model, 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lm_head.eval()  # a part that is frozen
    stream, vocabulary = torch.get_rng_state(), len(tokenizer)
    tasks = ["which_word", "next_words"]
    found = evaluate_lm_tasks(model, tokenizer, tasks, depths=[4, [0, 3], [1]], task_folder=task_folder, limit=16)
    assert torch.equal(stream, torch.get_rng_state())
    assert model.training
    assert not model.lm_head.training
    assert len(tokenizer) == vocabulary
    assert len(model.model.layers) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [one.keep_layers["layers"] for one in found] == [(0, 1, 2, 3), (0, 3), (1,)]
    names = {"which_word_acc", "which_word_acc_norm", "next_words_exact_match"}
    assert all(set(one.metrics) == names for one in found)
    assert all(one.rows["which_word_acc"] == 16 for one in found)
    assert len({one.metrics["which_word_acc"] for one in found}) > 1  # the depths differ
    for one in found:
        low, high = one.intervals["which_word_acc"]
        assert low < one.metrics["which_word_acc"] < high
        cut = prune_layers(language_model(), one.keep_layers)
        (alone,) = evaluate_lm_tasks(cut, tokenizer, tasks, depths=["all"], task_folder=task_folder, limit=16)
        assert alone.metrics == one.metrics
        assert alone.parameters == one.parameters


@needs_harness
def test_sweep_judges_by_tasks_of_ones_own(task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint, output = str(tmp_path / "model"), tmp_path / "swept"
    language_model().save_pretrained(checkpoint)
    tokenizer_of_words().save_pretrained(checkpoint)
    asked = ["sweep", checkpoint, "--lm-eval", "which_word", "--lm-eval-folder", str(task_folder), "--depths", "4,2"]
    report = tmp_path / "report.html"
    assert run([*asked, "--limit", "8", "--output", str(output), "--report", str(report)]) == 0
    results = read_results(output / "depth_results.json")
    assert [one.depth for one in results] == [4, 2]
    assert results[0].rows == {"which_word_acc": 8, "which_word_acc_norm": 8}
    said = capsys.readouterr().out
    assert "model on which_word, 8 rows" in said
    assert "which_word_acc_norm" in report.read_text()
    assert run([*asked[:3], "wich_word", *asked[4:], "--output", str(tmp_path / "other")]) == 2
    assert "no task 'wich_word' (nearest: which_word)" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@needs_harness
@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"tasks": "which_word"}, TaskError, "give a list"),
        ({"task_folder": "nowhere"}, TaskError, "no folder 'nowhere'"),
        ({"depths": [9]}, KeepLayersError, "9"),
        ({"limit": 0}, TaskError, "limit is 0"),
        ({"limit": 2.5}, TaskError, "whole number of rows"),
        ({"few_shot": -1}, TaskError, "few_shot is -1"),
        ({"chat_template": True}, TaskError, "the tokenizer has none"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(
    task_folder: Path, wrong: dict, error: type[LayerDropError], said: str
) -> None:
    asked = {"tasks": ["which_word"], "depths": [2], "task_folder": task_folder, **wrong}
    with pytest.raises(error, match=said):
        evaluate_lm_tasks(language_model(), tokenizer_of_words(), asked.pop("tasks"), **asked)


@needs_harness
def test_a_task_whose_data_is_gone_is_one_sentence(task_folder: Path) -> None:
    (task_folder / "rows.jsonl").unlink()
    with pytest.raises(TaskError, match="could not load which_word"):
        evaluate_lm_tasks(language_model(), tokenizer_of_words(), ["which_word"], depths=[2], task_folder=task_folder)


@needs_harness
def test_a_launch_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TaskError, match="judged by one process"):
        evaluate_lm_tasks(language_model(), tokenizer_of_words(), ["hellaswag"], depths=[2])


@needs_harness
def test_a_model_that_writes_no_text_is_refused() -> None:
    model = BertForSequenceClassification(
        BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    )
    with pytest.raises(TaskError, match="BertForSequenceClassification generates no text"):
        evaluate_lm_tasks(model, tokenizer_of_words(), ["hellaswag"], depths=[1])


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_harness_the_line_that_installs_it_is_told() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "hf-layerdrop\[lm-eval\]"'):
        evaluate_lm_tasks(language_model(), tokenizer_of_words(), ["hellaswag"], depths=[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lm-eval", "hellaswag", "--task", "sst2"], "leave out --task"),
        (["--limit", "8"], "name its tasks too"),
        (["--lm-eval", "hellaswag", "--limit", "-1"], "--limit is -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    language_model().save_pretrained(tmp_path / "model")
    assert run(["sweep", str(tmp_path / "model"), "--output", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
