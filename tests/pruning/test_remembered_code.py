"""A cut that is remembered on disk is that of the code of all parts of the model; code in no file is not remembered."""

from __future__ import annotations

import sys

import pytest
from transformers import BertConfig, BertForMaskedLM, EncoderDecoderConfig, EncoderDecoderModel
from transformers.models.bert import modeling_bert

from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.pruning import remembered_cuts
from hf_layerdrop.pruning.plan import forget, plan_cut

TINY = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
FOUR = BertConfig(**TINY, num_hidden_layers=4)
KEPT = {"encoder": (0, 2)}


def composite():
    return built_on_meta(EncoderDecoderModel, EncoderDecoderConfig.from_encoder_decoder_configs(FOUR, FOUR))


def digest(model):
    return remembered_cuts.digest_of(model, model.config, KEPT)


@pytest.mark.parametrize("changed", ["transformers.models.bert.modeling_bert", "transformers.modeling_layers"])
def test_the_code_of_each_part_counts(monkeypatch, tmp_path, changed):
    before = digest(composite())
    other = tmp_path / "edited.py"
    other.write_text("# edited")
    monkeypatch.setattr(sys.modules[changed], "__file__", str(other))
    assert None not in (before, digest(composite()))
    assert digest(composite()) != before


def test_a_part_that_is_not_of_transformers_is_not_remembered(monkeypatch):
    class Layer(modeling_bert.BertLayer):
        pass

    monkeypatch.setattr(modeling_bert, "BertLayer", Layer)
    assert digest(built_on_meta(BertForMaskedLM, FOUR)) is None


def test_code_that_is_in_no_file_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(modeling_bert, "__file__", "/a/program.zip/modeling_bert.py")
    forget()
    assert plan_cut(BertForMaskedLM, FOUR, [0, 2]).kept == {"encoder": (0, 2)}
    assert digest(built_on_meta(BertForMaskedLM, FOUR)) is None
