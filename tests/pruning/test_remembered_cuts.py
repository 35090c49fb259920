"""Which cuts plain transformers rebuilds is remembered on disk: for the same model alone, and never a refusal."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, Gemma2Config, Gemma2ForCausalLM

from hf_layerdrop.architectures import expressible
from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.pruning import plan, remembered_cuts
from hf_layerdrop.pruning.plan import plan_cut

TINY = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the answers lie, at first none."""
    monkeypatch.setattr(remembered_cuts, "_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def checked(monkeypatch):
    """Depths of the cut models that were built to be checked."""
    depths, build = [], expressible.built_on_meta

    def counted(cls, config):
        depths.append(config.num_hidden_layers)
        return build(cls, config)

    monkeypatch.setattr(expressible, "built_on_meta", counted)
    return depths


def plan_anew(config, kept, cls=BertForMaskedLM):
    """Plan a cut as a new process does, which remembers nothing itself."""
    plan.forget()
    return plan_cut(cls, config, kept)


def bert(**fields):
    return BertConfig(**{**TINY, "num_hidden_layers": 4, **fields})


def test_another_process_does_not_check_the_same_cut_again(folder, checked):
    first = plan_anew(bert(), [0, 2])
    assert checked == [2]
    again = plan_anew(bert(), [0, 2])
    assert checked == [2]
    assert again.kept == first.kept == {"encoder": (0, 2)}
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("change", ["kept", "config", "attention", "class", "version", "code"])
def test_whatever_an_answer_depends_on_makes_it_another(folder, checked, monkeypatch, change):
    plan_anew(bert(), [0, 2])
    config, kept, cls = bert(), [0, 2], BertForMaskedLM
    if change == "kept":
        kept = [0, 3]
    elif change == "config":
        config = bert(layer_norm_eps=1e-3)
    elif change == "attention":
        config._attn_implementation = "eager"
    elif change == "class":
        cls = BertModel
    elif change == "version":
        monkeypatch.setattr(remembered_cuts.transformers, "__version__", "5.99")
        remembered_cuts._versions.cache_clear()
    else:
        monkeypatch.setattr(remembered_cuts, "_stamp", lambda file: [str(file), 0, 0])
        remembered_cuts._versions.cache_clear()
    plan_anew(config, kept, cls)
    remembered_cuts._versions.cache_clear()
    assert checked == [2, 2]


@pytest.mark.parametrize("content", [b"", b"plain transformers", b"\xff" * 50, b"x" * 10_000])
def test_a_damaged_answer_is_none(folder, checked, content):
    plan_anew(bert(), [0, 2])
    (answer,) = folder.iterdir()
    whole = answer.read_bytes()
    answer.write_bytes(content)
    plan_anew(bert(), [0, 2])
    assert checked == [2, 2]
    assert answer.read_bytes() == whole


def test_an_answer_does_not_serve_under_another_name(folder, checked):
    plan_anew(bert(), [0, 2])
    (answer,) = folder.iterdir()
    model = built_on_meta(BertForMaskedLM, bert())
    other = remembered_cuts._file(remembered_cuts.digest_of(model, model.config, {"encoder": (0, 3)}))
    other.write_bytes(answer.read_bytes())
    plan_anew(bert(), [0, 3])
    assert checked == [2, 2]


def test_a_refusal_is_found_anew_with_its_reason(folder, monkeypatch):
    config, real = Gemma2Config(num_hidden_layers=4, num_key_value_heads=1, head_dim=8, **TINY), plan.cut_config

    def forgetful(*args):  # as a model type would be whose kinds of layers no field of its config tells
        cut = real(*args)
        cut.layer_types = cut.layer_types[::-1]
        return cut

    monkeypatch.setattr(plan, "cut_config", forgetful)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="plain transformers"):
            plan_anew(config, [0, 1], Gemma2ForCausalLM)
    assert not list(folder.iterdir())


def test_nothing_is_remembered_of_classes_whose_code_may_change(folder, checked):
    class Own(BertForMaskedLM):
        pass

    for _ in range(2):
        plan_anew(bert(), [0, 2], Own)
    assert checked == [2, 2]
    assert not list(folder.iterdir())


def test_of_too_many_answers_the_oldest_are_forgotten(folder, monkeypatch):
    monkeypatch.setattr(remembered_cuts, "MOST", 3)
    names = []
    for number in range(5):
        remembered_cuts.note(f"{number}" * 64)
        file = folder / (f"{number}" * 40)
        os.utime(file, (time.time() - 100 + number,) * 2)
        names.append(file.name)
    assert sorted(file.name for file in folder.iterdir()) == names[2:]


def test_writers_at_once_leave_one_whole_answer(folder):
    digest = "a" * 64
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: remembered_cuts.note(digest), range(40)))
    assert [file.name for file in folder.iterdir()] == ["a" * 40]
    assert remembered_cuts.is_known(digest)


def test_a_place_that_takes_no_files_costs_a_check_and_no_more(monkeypatch, tmp_path, checked):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(remembered_cuts, "_folder", lambda: tmp_path / "file")
    for _ in range(2):
        plan_anew(bert(), [0, 2])
    assert checked == [2, 2]


def test_what_is_loaded_is_the_same_with_and_without_an_answer(folder, tmp_path_factory):
    from hf_layerdrop import LayerDropBertForMaskedLM

    checkpoint = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    BertForMaskedLM(bert(initializer_range=0.3)).save_pretrained(checkpoint)
    loaded = []
    for _ in range(2):
        plan.forget()
        loaded.append(LayerDropBertForMaskedLM.from_pretrained(checkpoint, keep_layers=[0, 2]))
    assert list(folder.iterdir())
    one, other = (model.state_dict() for model in loaded)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
