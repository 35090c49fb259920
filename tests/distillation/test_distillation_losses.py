"""The losses of distillation are exactly those that are written down."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax
from transformers import (
    Seq2SeqTrainingArguments,
)

from conftest import (
    assert_same_tensors,
    batch_for,
    build,
)
from distilling import (
    CLASSIFIER,
    FAMILIES,
    KEEP,
    SEQ2SEQ,
    batch_of,
    only,
    settings,
    teacher_of,
    trainer_for,
    training_loss,
)
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.config import DistillationConfig
from hf_layerdrop.distillation.losses import cosine_loss, soft_loss
from hf_layerdrop.distillation.student import matched, student_of
from hf_layerdrop.distillation.trainer import DistillationTrainer, Seq2SeqDistillationTrainer
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.injection.inject import inject_layerdrop

# The losses, as numbers.


def test_the_soft_loss_is_the_divergence_times_the_square_of_the_temperature():
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    teacher = torch.tensor([[math.log(3.0), 0.0], [9.0, -9.0]])
    student, counts = torch.zeros(2, 2), torch.tensor([True, False])
    assert soft_loss(student, teacher, counts, 1.0).item() == pytest.approx(divergence)
    assert soft_loss(student, 2 * teacher, counts, 2.0).item() == pytest.approx(4 * divergence)
    assert soft_loss(teacher, teacher, counts, 2.0).item() == 0
    assert soft_loss(student, teacher, torch.tensor([False, False]), 2.0).item() == 0


def test_a_regression_is_compared_by_its_squared_error():
    counts = torch.tensor([True, True, False])
    assert soft_loss(torch.tensor([[1.0], [2.0], [9.0]]), torch.zeros(3, 1), counts, 2.0).item() == 2.5


def test_the_cosine_loss_looks_at_directions_of_real_tokens():
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0], [5.0, 5.0], [float("nan"), 0.0]])
    teacher = torch.tensor([[0.0, 3.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    counts = torch.tensor([True, True, True, False])
    assert cosine_loss(student, teacher, counts).item() == pytest.approx((1 + 1 - math.sqrt(0.5) + 0) / 3)


def test_states_are_paired_with_those_of_the_layer_they_came_from():
    assert matched((0, 2, 5), 6) == [(0, 0), (1, 1), (2, 3), (3, 6)]
    assert matched((1, 2), 6) == [(0, 0), (1, 2), (2, 6)]  # what the head reads answers to what the head reads


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": 0}, "above 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"soft_weight": -1.0}, "soft_weight is -1.0"),
        ({"hard_weight": "2"}, "hard_weight is '2'"),
        ({"soft_weight": 0, "hidden_weight": 0, "hard_weight": 0}, "all 0"),
    ],
)
def test_settings_that_cannot_be_meant(values, said):
    with pytest.raises(DistillationError, match=said):
        DistillationConfig(**values)


# The loss of a training step.


@pytest.mark.parametrize("head", FAMILIES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(tmp_path, head):
    teacher = teacher_of(head)
    for weights, limit in (({"soft_weight": 1.0}, 1e-9), ({"hidden_weight": 1.0}, 1e-6)):
        same = trainer_for(copy.deepcopy(teacher), teacher, tmp_path, head, only(**weights))
        assert abs(training_loss(same, batch_of(head)).item()) <= limit
        cut = trainer_for(student_of(teacher, KEEP[head]), teacher, tmp_path, head, only(**weights))
        assert training_loss(cut, batch_of(head)).item() > 0.01


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("BertForMaskedLM", {}),
        ("BertForSequenceClassification", {"num_labels": 1}),
        ("BertForTokenClassification", {}),
        ("BertForQuestionAnswering", {}),
        ("BertForMultipleChoice", {}),
        ("BartForSequenceClassification", {}),
        ("BartForCausalLM", {}),
    ],
)
def test_any_head_with_logits_can_be_distilled_also_without_labels(tmp_path, head, changes):
    teacher = build(head, **changes)
    student = student_of(teacher, {stack: [0, 2] for stack in depths_of(teacher)})
    for weights in ({"soft_weight": 1.0}, {"hidden_weight": 1.0}):
        losses = []
        for network in (copy.deepcopy(teacher), student):
            trainer = DistillationTrainer(network, settings(tmp_path), teacher=teacher, distillation=only(**weights))
            losses.append(training_loss(trainer, batch_for(head)).item())
        assert abs(losses[0]) < 1e-6
        assert losses[1] > 1e-3


def soft_by_hand(student, teacher, temperature):
    own, other = log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1)
    return (other.exp() * (other - own)).sum(-1) * temperature**2


def expected_parts(head, student, teacher, batch):
    """Compute the three losses token by token, without the package."""
    own, other = student(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
    labels, real = batch["labels"], batch["attention_mask"].bool()
    if head == CLASSIFIER:
        soft = soft_by_hand(own.logits, other.logits, 3.0).mean()
        hard = cross_entropy(own.logits, labels)
    else:
        mine, its = (own.logits, other.logits) if head == SEQ2SEQ else (own.logits[:, :-1], other.logits[:, :-1])
        labels = labels if head == SEQ2SEQ else labels[:, 1:]
        soft = soft_by_hand(mine, its, 3.0)[labels != -100].mean()
        hard = cross_entropy(mine[labels != -100], labels[labels != -100])
    states = {"hidden_states": (real, [(0, 0), (1, 1), (2, 4)])}
    if head == SEQ2SEQ:
        states = {
            "encoder_hidden_states": (real, [(0, 0), (1, 1), (2, 2), (3, 4)]),
            "decoder_hidden_states": (batch["labels"] != -100, [(0, 0), (1, 2), (2, 4)]),
        }
    cosines = [
        1 - cosine_similarity(own[key][mine][mask], other[key][its][mask], dim=-1).mean()
        for key, (mask, pairs) in states.items()
        for mine, its in pairs
    ]
    return {"soft": soft, "hidden": torch.stack(cosines).mean(), "hard": hard}


@pytest.mark.parametrize("head", FAMILIES)
def test_the_loss_is_what_one_computes_by_hand(tmp_path, head):
    teacher = teacher_of(head)
    student = student_of(teacher, KEEP[head])
    parts = expected_parts(head, student, teacher, batch_of(head))
    weights = {"soft": 0.7, "hidden": 11.0, "hard": 1.3}
    config = DistillationConfig(3.0, *weights.values())
    loss = training_loss(trainer_for(student, teacher, tmp_path, head, config), batch_of(head))
    assert min(part.item() for part in parts.values()) > 0.01
    assert loss.item() == pytest.approx(sum(weights[name] * part.item() for name, part in parts.items()), rel=1e-5)


@pytest.mark.parametrize("head", FAMILIES)
def test_padding_changes_nothing(tmp_path, head):
    teacher = teacher_of(head)
    trainer = trainer_for(student_of(teacher, KEEP[head]), teacher, tmp_path, head)
    losses = [training_loss(trainer, batch_of(head, width)).item() for width in (9, 15)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("head", FAMILIES)
def test_accumulated_batches_weigh_as_much_as_their_labels(tmp_path, head):
    teacher = teacher_of(head)
    ends = []
    for size, accumulated in ((8, 1), (2, 4)):
        trainer = trainer_for(
            student_of(teacher, KEEP[head]),
            teacher,
            tmp_path,
            head,
            only(soft_weight=1.0, hard_weight=1.0),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
        )
        trainer.train()
        ends.append(trainer.model.state_dict())
        assert trainer.layer_forwards.teacher == accumulated * sum(depths_of(teacher).values())
    assert_same_tensors(*ends, atol=1e-5)


@pytest.mark.parametrize("head", FAMILIES)
def test_gradients_reach_the_student_alone(tmp_path, head):
    teacher = teacher_of(head)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = student_of(teacher, KEEP[head])
    first = {name: weight.clone() for name, weight in student.state_dict().items()}
    cls = Seq2SeqDistillationTrainer if head == SEQ2SEQ else DistillationTrainer
    arguments = Seq2SeqTrainingArguments(**settings(tmp_path).to_dict()) if head == SEQ2SEQ else None
    trainer = trainer_for(student, teacher.train(), tmp_path, head, cls=cls, args=arguments)
    trainer.train()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert_same_tensors(teacher.state_dict(), before)
    known = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in student.parameters()}
    assert any(not torch.equal(weight, first[name]) for name, weight in student.state_dict().items())


def test_the_teacher_does_not_drop_nor_advance_any_generator(tmp_path):
    teacher = teacher_of(CLASSIFIER, hidden_dropout_prob=0.5)
    inject_layerdrop(teacher, 0.9)
    student = student_of(teacher, [0, 2])
    trainer = trainer_for(student, teacher.train(), tmp_path, CLASSIFIER, only(soft_weight=1.0))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(training_loss(trainer, batch_of(CLASSIFIER)).item())
        after = torch.rand(1)
        torch.manual_seed(0)
        student(**batch_of(CLASSIFIER))
        assert torch.equal(torch.rand(1), after)
    assert losses[0] == losses[1]


def test_the_teacher_runs_in_the_precision_of_the_run(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    dtypes = []
    teacher.bert.encoder.layer[3].output.dense.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    trainer = trainer_for(student_of(teacher, [0, 2]), teacher, tmp_path, CLASSIFIER, bf16=True)
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
