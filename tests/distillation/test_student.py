"""The student is its teacher without some layers; the arms of an experiment are what their names say."""

from __future__ import annotations

import copy

import pytest
import torch

from conftest import (
    assert_same_tensors,
    build,
    cut_by_hand,
    output_of,
)
from distilling import CLASSIFIER, FAMILIES, KEEP, SEQ2SEQ, batch_of, teacher_of
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.model_for_arm import ARMS, model_for_arm
from hf_layerdrop.distillation.student import student_of
from hf_layerdrop.errors import DistillationError, KeepLayersError, LayerDropConfigError
from hf_layerdrop.pruning.prune import prune_layers

# The student.


@pytest.mark.parametrize("head", FAMILIES)
def test_the_student_is_the_cut_teacher_with_weights_of_its_own(head):
    teacher = teacher_of(head)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = student_of(teacher, KEEP[head])
    pruned = copy.deepcopy(teacher)
    prune_layers(pruned, KEEP[head])
    assert_same_tensors(student.state_dict(), pruned.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert_same_tensors(teacher.state_dict(), before)
    assert not getattr(teacher.config, "hf_layerdrop", None)


def test_by_default_it_begins_with_half_of_the_layers_spread_evenly():
    student = student_of(build(CLASSIFIER))
    assert student.config.hf_layerdrop["keep_layers"] == {"encoder": [0, 3]}
    assert student.config.hf_layerdrop["strategy"] == "spread"
    batch = {name: value for name, value in batch_of(CLASSIFIER).items() if name != "labels"}
    by_hand = cut_by_hand(build(CLASSIFIER), {"encoder": [0, 3]})
    assert torch.equal(output_of(student, batch), output_of(by_hand, batch))
    assert depths_of(student_of(build(SEQ2SEQ))) == {"encoder": 2, "decoder": 2}
    assert "strategy" not in student_of(build(CLASSIFIER), [0, 2]).config.hf_layerdrop
    assert student_of(build(CLASSIFIER), 3).config.hf_layerdrop["strategy"] == "spread"


def test_keeping_all_layers_is_refused():
    with pytest.raises(DistillationError, match="all 4 layers of the encoder"):
        student_of(teacher_of(CLASSIFIER), "all")
    with pytest.raises(KeepLayersError):
        student_of(teacher_of(CLASSIFIER), 9)


# The arms of an experiment.


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_trains_the_model_that_its_name_says(tmp_path, name):
    teacher = teacher_of(CLASSIFIER)
    teacher.save_pretrained(tmp_path / "teacher")
    found = model_for_arm(name, tmp_path / "teacher", head="SequenceClassification", depth=2, rate=0.5)
    whole = name in ("layerdrop", "depth", "standard")
    assert depths_of(found) == {"encoder": 4 if whole else 2}
    state = found._layerdrop if whole else None
    if state is not None:
        assert state.drops == (name != "standard")
        assert state.config.sampler == ("depth" if name == "depth" else "bernoulli")
    first = found.bert.encoder.layer[0].output.dense.weight
    same = torch.equal(first, teacher.bert.encoder.layer[0].output.dense.weight)
    assert same == (name != "scratch")
    assert found.num_parameters() == (teacher if whole else student_of(teacher, 2)).num_parameters()
    if name != "distill":
        built = model_for_arm(name, teacher.config, head="SequenceClassification", depth=2, seed=3)
        again = model_for_arm(name, teacher.config, head="SequenceClassification", depth=2, seed=3)
        assert_same_tensors(built.state_dict(), again.state_dict())
        assert depths_of(built) == depths_of(found)


def test_the_arm_with_layerdrop_drops_other_structures_too():
    config = teacher_of(CLASSIFIER).config
    found = model_for_arm("layerdrop", config, head="SequenceClassification", structure=("head", "layer"))
    assert set(found._layerdrop.config.structure) == {"head", "layer"}
    with pytest.raises(LayerDropConfigError, match="cannot serve"):
        model_for_arm("depth", config, head="SequenceClassification", structure="head")


def test_arms_that_lack_something():
    config = teacher_of(CLASSIFIER).config
    for arguments, said in (
        ({"name": "strach"}, "choose one of layerdrop"),
        ({"name": "scratch"}, "give depth="),
        ({"name": "distill", "depth": 2}, "give its checkpoint"),
    ):
        with pytest.raises(LayerDropConfigError, match=said):
            model_for_arm(arguments.pop("name"), config, head="SequenceClassification", **arguments)
