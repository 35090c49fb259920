"""What the app shows for a text and a depth: what the pruned checkpoint answers, and what it costs. No page yet."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from app_models import LAYERS, POSITIONS, SHOWN, app_folder, save_model  # noqa: F401 - a fixture
from conftest import recorded_runs
from hf_layerdrop.app.model import LONGEST_TEXT, MOST_NEW_TOKENS, REPEATS, WARM_UP, load_app_model
from hf_layerdrop.errors import CheckpointError, KeepLayersError, TaskError, UnsupportedModelError
from hf_layerdrop.hub.save import save_pruned

NEW = 6


def texts_of(found):
    return [text for text, _ in found.rows] if found.text is None else found.text


def model_of(app):
    return app._tools.model


@pytest.fixture
def app(request, app_folder):
    return load_app_model(str(app_folder(request.param)))


def every_head(function):
    return pytest.mark.parametrize(("app", "head"), [(head, head) for head in SHOWN], indirect=["app"])(function)


@every_head
def test_at_each_depth_the_answer_is_that_of_the_pruned_checkpoint(app, head, app_folder, tmp_path):
    answers = {depth: app.answer(SHOWN[head], depth, NEW) for depth in (LAYERS, 2, 1)}
    scores = {depth: answer.found for depth, answer in answers.items()}
    assert scores[LAYERS] != scores[2] != scores[1]  # the cut is one
    for depth in (2, 1):
        folder = save_pruned(str(app_folder(head)), tmp_path / str(depth), keep_layers=depth)
        alone = load_app_model(str(folder)).answer(SHOWN[head], "all", NEW)
        assert texts_of(answers[depth].found) == texts_of(alone.found)
        assert [score for _, score in scores[depth].rows] == pytest.approx([score for _, score in alone.found.rows])
        assert answers[depth].parameters == alone.parameters < app.parameters
        assert {len(kept) for kept in answers[depth].kept.values()} == {depth}


@pytest.mark.parametrize("app", ["BertForSequenceClassification"], indirect=True)
def test_a_classifier_says_what_transformers_says(app, app_folder):
    text = SHOWN["BertForSequenceClassification"][0]
    plain = transformers.pipeline("text-classification", str(app_folder("BertForSequenceClassification")))
    expected = [(one["label"], pytest.approx(one["score"])) for one in plain(text, top_k=None)]
    assert list(app.answer([text, ""], "all").found.rows) == expected
    assert app.answer([text, "a stone"], "all").found != app.answer([text, ""], "all").found


@pytest.mark.parametrize("app", ["LlamaForCausalLM", "BartForConditionalGeneration"], indirect=True)
def test_generated_tokens_are_those_of_generate(app):
    model, tokenizer = model_of(app), app._tools.tokenizer
    inputs = tokenizer("the old bridge was built", return_tensors="pt")
    known = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens = model.generate(**known, max_new_tokens=NEW, do_sample=False)[0]
    written = tokens[1:] if model.config.is_encoder_decoder else tokens[inputs["input_ids"].shape[1] :]
    found = app.answer(["the old bridge was built"], "all", NEW).found
    assert found.text == tokenizer.decode(written, skip_special_tokens=True)
    assert found.new_tokens == len(written) > 1


@pytest.mark.parametrize("app", ["BertForQuestionAnswering"], indirect=True)
def test_an_answer_is_the_best_span_of_the_paragraph(app):
    question, paragraph = SHOWN["BertForQuestionAnswering"]
    encoded = app._tools.tokenizer(question, paragraph, return_tensors="pt", return_offsets_mapping=True)
    offsets, parts = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids(0)
    output = model_of(app)(**encoded)
    places = [place for place, part in enumerate(parts) if part == 1]
    sums = {
        (b, e): (output.start_logits[0, b] + output.end_logits[0, e]).item() for b in places for e in places if b <= e
    }
    begin, end = max(sums, key=sums.__getitem__)
    rows = app.answer([question, paragraph], "all").found.rows
    assert rows[0][0] == paragraph[offsets[begin][0] : offsets[end][1]]
    assert [score for _, score in rows] == sorted((score for _, score in rows), reverse=True)


@pytest.mark.parametrize("app", ["BertModel"], indirect=True)
def test_sentences_are_compared_by_their_mean_hidden_states(app):
    first, others = SHOWN["BertModel"]
    with torch.no_grad():
        means = [
            model_of(app)(**app._tools.tokenizer(line, return_tensors="pt")).last_hidden_state[0].mean(0)
            for line in (first, *others.splitlines())
        ]
    expected = [torch.cosine_similarity(means[0], other, dim=0).item() for other in means[1:]]
    rows = app.answer([first, others], "all").found.rows
    assert [score for _, score in rows] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)


@pytest.mark.parametrize("app", ["BertForMaskedLM"], indirect=True)
def test_each_mask_has_guesses(app):
    rows = app.answer(["the [MASK] was built of [MASK]"], 2).found.rows
    assert [text.partition(": ")[0] for text, _ in rows] == ["1"] * 5 + ["2"] * 5
    assert app.labels == ("Text with [MASK]",)
    assert app.answer(app.example, 2).found.rows


@pytest.mark.parametrize("app", ["BertForSequenceClassification"], indirect=True)
def test_what_is_timed_is_the_sub_network_and_then_the_whole_model(app):
    with recorded_runs(model_of(app)) as runs:
        answer = app.answer(["a good bridge"], [0, 3])
    timed = WARM_UP + REPEATS
    assert [runs["encoder"].count(layer) for layer in range(LAYERS)] == [1 + 2 * timed, timed, timed, 1 + 2 * timed]
    assert answer.milliseconds > 0 < answer.whole_milliseconds
    assert answer.tokens == len(app._tools.tokenizer("a good bridge")["input_ids"])


@pytest.mark.parametrize("app", ["BertForSequenceClassification"], indirect=True)
def test_there_is_one_model_and_it_stays_whole(app):
    weights = {name: weight.data_ptr() for name, weight in model_of(app).named_parameters()}
    assert app._tools.pipeline.model is model_of(app)
    app.answer(["a good bridge"], 1)
    assert {name: weight.data_ptr() for name, weight in model_of(app).named_parameters()} == weights


@pytest.mark.parametrize("app", ["BertForSequenceClassification"], indirect=True)
def test_users_at_the_same_time_take_turns(app):
    alone = {depth: app.answer(["a good bridge"], depth).found for depth in range(1, LAYERS + 1)}
    found, wrong = {depth: [] for depth in alone}, []

    def ask(depth):
        try:
            found[depth] += [app.answer(["a good bridge"], depth).found for _ in range(5)]
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(depth,)) for depth in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert found == {depth: [answer] * 5 for depth, answer in alone.items()}


LONG = "the old bridge " * POSITIONS


@pytest.mark.parametrize(
    ("app", "texts", "new", "says"),
    [
        ("BertForSequenceClassification", [LONG], 1, f"tokens, and the model has positions for {POSITIONS}"),
        ("BertForSequenceClassification", [" ", ""], 1, "'Text' is empty"),
        ("BertForSequenceClassification", ["a" * (LONGEST_TEXT + 1)], 1, "20,001 letters"),
        ("BertForQuestionAnswering", ["when", ""], 1, "'Paragraph' is empty"),
        ("BertForMaskedLM", ["no mask"], 1, r"The text has no \[MASK\]"),
        ("BertModel", ["the bridge", f"a\n{LONG}"], 1, "shorten it"),
        ("LlamaForCausalLM", ["the bridge"], POSITIONS, f"{POSITIONS} new tokens were asked for, and after the"),
        ("LlamaForCausalLM", ["the bridge"], 0, "0 new tokens"),
        ("LlamaForCausalLM", ["the bridge"], MOST_NEW_TOKENS + 1, f"1 to {MOST_NEW_TOKENS}"),
        ("BartForConditionalGeneration", ["the bridge"], POSITIONS, f"positions for {POSITIONS - 1}: ask for fewer"),
        ("BartForConditionalGeneration", [LONG], 1, f"positions for {POSITIONS}: shorten it"),
    ],
    indirect=["app"],
)
def test_what_does_not_fit_is_one_sentence_before_the_model_runs(app, texts, new, says):
    with recorded_runs(model_of(app)) as runs, pytest.raises(TaskError, match=says) as refused:
        app.answer(texts, 2, new)
    assert str(refused.value).count(". ") == 0
    assert not any(runs.values())


@pytest.mark.parametrize("app", ["LlamaForCausalLM"], indirect=True)
def test_all_positions_can_be_used(app):
    tokens = len(app._tools.tokenizer("the bridge")["input_ids"])
    assert app.answer(["the bridge"], 2, POSITIONS - tokens).found.new_tokens > 0
    with pytest.raises(TaskError, match="shorten the text"):
        app.answer(["the bridge"], 2, POSITIONS - tokens + 1)


@pytest.mark.parametrize("app", ["BertForSequenceClassification"], indirect=True)
def test_layers_that_are_not_there_are_refused(app):
    with pytest.raises(KeepLayersError):
        app.answer(["a good bridge"], LAYERS + 1)


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForMultipleChoice"])
def test_other_heads_are_refused_before_weights_are_read(head, tmp_path):
    folder = save_model(tmp_path / "other", head)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnsupportedModelError, match=f"nothing to show of {head}.*masked words"):
        load_app_model(str(folder))


def test_a_model_of_images_and_one_without_tokenizer_are_refused(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**small, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    with pytest.raises(UnsupportedModelError, match="nothing to show of ViTModel"):
        load_app_model(str(tmp_path / "vit"))
    folder = save_model(tmp_path / "bert", "BertForMaskedLM")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_app_model(str(folder))


def test_masked_words_need_a_mask_token(tmp_path):
    folder = save_model(tmp_path / "bert", "BertForMaskedLM")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no mask token"):
        load_app_model(str(folder))
