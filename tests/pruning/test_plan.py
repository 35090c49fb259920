"""What is found out of a model for one load is remembered for the next, and never taken for another model's."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForMaskedLM, Gemma2Config, Gemma2ForCausalLM

from hf_layerdrop.architectures import expressible as rebuilding
from hf_layerdrop.errors import KeepLayersError, UnsupportedModelError
from hf_layerdrop.pruning import plan as cuts
from hf_layerdrop.pruning import remembered_cuts
from hf_layerdrop.pruning.plan import plan_cut

TINY = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def built(monkeypatch, tmp_path):
    """Depths of the models that were built to look at them, from memories that are empty at first."""
    monkeypatch.setattr(remembered_cuts, "_folder", lambda: tmp_path)
    cuts.forget()
    depths, build = [], rebuilding.built_on_meta

    def counted(cls, config):
        depths.append(config.num_hidden_layers)
        return build(cls, config)

    for module in (cuts, rebuilding):
        monkeypatch.setattr(module, "built_on_meta", counted)
    yield depths
    cuts.forget()


def bert(layers=4, **fields):
    return BertConfig(num_hidden_layers=layers, **{**TINY, **fields})


def test_a_second_load_builds_nothing_more(built):
    first = plan_cut(BertForMaskedLM, bert(), [0, 2])
    assert built == [4, 2]
    again = plan_cut(BertForMaskedLM, bert(), [0, 2])
    assert built == [4, 2]
    assert again.kept == first.kept == {"encoder": (0, 2)}


def test_other_layers_are_looked_at_anew(built):
    plan_cut(BertForMaskedLM, bert(), [0, 2])
    assert plan_cut(BertForMaskedLM, bert(), [1]).kept == {"encoder": (1,)}
    assert built == [4, 2, 1]


@pytest.mark.parametrize("fields", [{"layers": 6}, {"hidden_size": 32}, {"layer_norm_eps": 1e-3}], ids=repr)
def test_a_config_that_differs_in_anything_is_another_model(fields, built):
    plan_cut(BertForMaskedLM, bert(), [0, 2])
    plan_cut(BertForMaskedLM, bert(**fields), [0, 2])
    assert len(built) == 4


def test_what_does_not_fit_is_refused_each_time():
    plan_cut(BertForMaskedLM, bert(), [0, 3])
    for _ in range(2):
        with pytest.raises(KeepLayersError):
            plan_cut(BertForMaskedLM, bert(), [4])


def test_a_cut_that_is_rebuilt_otherwise_is_refused_each_time(monkeypatch):
    config = Gemma2Config(num_hidden_layers=4, num_key_value_heads=1, head_dim=8, **TINY)
    real = cuts.cut_config

    def forgetful(*args):  # as a model type would be whose kinds of layers no field of its config tells
        cut = real(*args)
        cut.layer_types = cut.layer_types[::-1]
        return cut

    monkeypatch.setattr(cuts, "cut_config", forgetful)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="plain transformers"):
            plan_cut(Gemma2ForCausalLM, config, [0, 1])


def test_few_models_are_remembered():
    for width in range(1, 9):
        plan_cut(BertForMaskedLM, bert(intermediate_size=width), [0])
    assert len(cuts._looked_at) == cuts._REMEMBERED


def test_a_config_that_cannot_be_pickled_is_looked_at_each_time(built):
    for _ in range(2):
        config = bert()
        config.__class__ = type("Odd", (BertConfig,), {})  # a class that pickle does not find
        plan_cut(BertForMaskedLM, config, [0, 2])
    assert built == [4, 2, 4, 2]
