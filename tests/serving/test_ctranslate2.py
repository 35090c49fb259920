"""CTranslate2 gives the greedy tokens, and where there are logits those, of the model; `make serving-ctranslate2`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving import NEW_TOKENS, WORDS, assert_served, cut_folder, plain, runtime, typed

pytestmark = pytest.mark.serving
ctranslate2 = runtime("ctranslate2", "ctranslate2")
PROMPTS = [[7, 9, 11, 14, 20], [30, 8, 41], [5, 55, 21, 22]]


def converted(shape, depth, folder):
    """Convert a cut by the lines of the page; return the plain model and where the other is."""
    cut = cut_folder(shape, depth, folder)
    model = plain(shape, cut)
    typed("CTranslate2", source=str(cut), target=str(folder / "out"))
    return model, str(folder / "out")


@pytest.mark.parametrize("depth", [0, 1])
def test_the_hidden_states_of_an_encoder(depth, tmp_path):
    model, folder = converted("bert", depth, tmp_path)
    for prompt in PROMPTS:
        found = torch.as_tensor(np.array(ctranslate2.Encoder(folder).forward_batch([prompt]).last_hidden_state))
        assert torch.allclose(found, model.bert(torch.tensor([prompt])).last_hidden_state, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_greedy_tokens_of_an_encoder_decoder(depth, tmp_path):
    model, folder = converted("bart", depth, tmp_path)
    inputs = [[WORDS[token] for token in prompt] for prompt in PROMPTS]
    found = ctranslate2.Translator(folder).translate_batch(inputs, beam_size=1, max_decoding_length=NEW_TOKENS)
    for prompt, result in zip(PROMPTS, found, strict=True):
        expected = greedy(model, prompt)[0, 1:]
        assert result.hypotheses[0] == [WORDS[token] for token in expected if token != 2]


@pytest.mark.parametrize("depth", [0, 1])
def test_the_greedy_tokens_and_logits_of_a_language_model(depth, tmp_path):
    model, folder = converted("llama", depth, tmp_path)
    generator = ctranslate2.Generator(folder)
    for prompt in PROMPTS:
        words = [[WORDS[token] for token in prompt]]
        (found,) = generator.generate_batch(words, beam_size=1, max_length=NEW_TOKENS, include_prompt_in_result=False)
        assert found.sequences_ids[0] == [
            token for token in greedy(model, prompt)[0, len(prompt) :].tolist() if token != 2
        ]
        inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt))}
        assert_served(np.array(generator.forward_batch([prompt])), model, inputs)


def greedy(model, prompt):
    return model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, num_beams=1, do_sample=False)
