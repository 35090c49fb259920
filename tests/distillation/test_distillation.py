"""Distillation: the student learns from its teacher alone, by exactly the losses that are written down."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from classifiers import bart, model, rows, save_classifier  # noqa: F401 - fixtures
from conftest import (
    DEPTH,
    VOCABULARY,
    assert_same_tensors,
    batch_for,
    build,
    cut_by_hand,
    output_of,
    tiny_config,
)
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.cli import run
from hf_layerdrop.distillation.config import DistillationConfig
from hf_layerdrop.distillation.losses import cosine_loss, soft_loss
from hf_layerdrop.distillation.model_for_arm import ARMS, model_for_arm
from hf_layerdrop.distillation.student import matched, student_of
from hf_layerdrop.distillation.trainer import DistillationTrainer, Seq2SeqDistillationTrainer
from hf_layerdrop.errors import DistillationError, KeepLayersError, LayerDropConfigError
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.evaluation.trainer_source import has_own_evaluation
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.samplers.config import LayerDropConfig

CLASSIFIER, CAUSAL, SEQ2SEQ = "BertForSequenceClassification", "GPT2LMHeadModel", "BartForConditionalGeneration"
FAMILIES = (CLASSIFIER, CAUSAL, SEQ2SEQ)
KEEP = {CLASSIFIER: [0, 2], CAUSAL: [0, 2], SEQ2SEQ: {"encoder": [0, 1, 3], "decoder": [1, 2]}}
LENGTHS = (9, 4, 7, 9, 5, 8, 3, 6)


def teacher_of(head, seed=0, **changes):
    if head != CAUSAL:
        return build(head, seed, **changes)
    torch.manual_seed(seed)
    shape = {"n_embd": 16, "n_layer": DEPTH, "n_head": 2, "n_positions": 40, "initializer_range": 0.3}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **shape, **{**dropout, **changes})
    return GPT2LMHeadModel(config).eval()


def examples(head, width=9):
    """Rows of several lengths, padded to ``width``, with the labels of their task."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(5, VOCABULARY, (length,), generator=generator)
        padding = torch.ones(width - length, dtype=torch.long)
        mask = torch.cat([torch.ones_like(ids), 0 * padding])
        labels = torch.cat([ids, -100 * padding])
        if head == SEQ2SEQ:
            labels = torch.cat([ids.flip(0)[: max(2, length - 2)], -100 * torch.ones(width, dtype=torch.long)])[:width]
        row = {"input_ids": torch.cat([ids, padding]), "attention_mask": mask}
        found.append({**row, "labels": torch.tensor(number % 2) if head == CLASSIFIER else labels})
    return found


def batch_of(head, width=9):
    found = examples(head, width)
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def settings(folder, **changes):
    plain = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no"}
    return TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**plain, **changes})


def trainer_for(student, teacher, folder, head, config=None, cls=DistillationTrainer, **changes):
    arguments = changes.pop("args", None) or settings(folder, **changes)
    return cls(student, arguments, train_dataset=examples(head), teacher=teacher, distillation=config)


def only(**weights):
    return DistillationConfig(**{"soft_weight": 0.0, "hidden_weight": 0.0, "hard_weight": 0.0, **weights})


def training_loss(trainer, batch, **kwargs):
    trainer.model.train()
    return trainer.compute_loss(trainer.model, batch, **kwargs)


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


# Training.


@pytest.mark.parametrize("head", FAMILIES)
def test_training_brings_the_student_close_to_its_teacher(tmp_path, head):
    teacher = teacher_of(head)
    trainer = trainer_for(
        student_of(teacher, KEEP[head]),
        teacher,
        tmp_path,
        head,
        per_device_train_batch_size=8,
        max_steps=60,
        learning_rate=5e-3,
    )
    trainer.distillation = only(soft_weight=1.0)
    untrained = training_loss(trainer, batch_of(head)).item()
    trainer.train()
    assert training_loss(trainer, batch_of(head)).item() < untrained / 3
    trained = teacher_of(head, seed=9)  # another model is no closer than before
    other = trainer_for(copy.deepcopy(trainer.model), trained, tmp_path, head, only(soft_weight=1.0))
    assert training_loss(other, batch_of(head)).item() > untrained / 3


def test_a_resumed_run_equals_one_that_went_through_and_saves_the_student_alone(tmp_path):
    def trainer(name, **changes):
        teacher = teacher_of(CLASSIFIER, hidden_dropout_prob=0.1)
        student = student_of(teacher, [0, 1, 3])
        inject_layerdrop(student, LayerDropConfig(0.5, seed=1))
        more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, **changes}
        return trainer_for(student, teacher, tmp_path / name, CLASSIFIER, **more)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_tensors(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.layer_forwards == whole.layer_forwards
    assert whole.layer_forwards.teacher == 4 * DEPTH
    assert 0 < whole.layer_forwards.student < 4 * 3
    assert load_file(checkpoint / "model.safetensors").keys() == whole.model.state_dict().keys()
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) <= len(list(whole.model.parameters()))


def test_layers_that_layerdrop_dropped_do_not_count(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    student = student_of(teacher, [0, 1, 3])
    inject_layerdrop(student, LayerDropConfig((0.0, 1.0, 0.0)))
    trainer = trainer_for(student, teacher, tmp_path, CLASSIFIER, max_steps=3, logging_steps=1)
    trainer.train()
    assert (trainer.layer_forwards.teacher, trainer.layer_forwards.student) == (3 * DEPTH, 3 * 2)
    assert trainer.layer_forwards.total == 3 * DEPTH + 6
    trainer.train()  # a second training is counted by itself
    assert trainer.layer_forwards.student == 6
    alone = trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER, only(hard_weight=1.0))
    alone.train()
    assert alone.layer_forwards.teacher == 0  # the labels alone need no teacher


def test_evaluation_is_that_of_the_task(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    student = student_of(teacher, [0, 2])
    found = trainer_for(student, teacher, tmp_path, CLASSIFIER).predict(examples(CLASSIFIER))
    expected = Trainer(student, settings(tmp_path)).predict(examples(CLASSIFIER))
    assert found.metrics["test_loss"] == expected.metrics["test_loss"]
    assert torch.equal(torch.tensor(found.predictions), torch.tensor(expected.predictions))


def test_the_three_losses_are_logged_and_the_settings_are_noted_in_the_config(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    trainer = trainer_for(student_of(teacher, [0, 2]), teacher, tmp_path, CLASSIFIER, logging_steps=2)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "soft_loss" in entry)
    assert log["loss"] == pytest.approx(5 * log["soft_loss"] + log["hidden_loss"] + 2 * log["hard_loss"], rel=1e-3)
    assert trainer.model.config.hf_layerdrop["distilled_with"]["temperature"] == 2.0


def test_depths_are_measured_together_as_with_trainer_itself(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    trainer = trainer_for(student_of(teacher, [0, 2]), teacher, tmp_path, CLASSIFIER)
    assert not has_own_evaluation(trainer)
    assert has_own_evaluation(LogsMore(trainer.model, settings(tmp_path), teacher=teacher))
    found = evaluate_depths(trainer, examples(CLASSIFIER), depths=[2, 1], progress=False)
    plain = Trainer(trainer.model, settings(tmp_path))
    expected = evaluate_depths(plain, examples(CLASSIFIER), depths=[2, 1], progress=False)
    assert [one.metrics for one in found] == [one.metrics for one in expected]
    assert [one.layer_forwards for one in found] == [one.layer_forwards for one in expected]


class LogsMore(DistillationTrainer):
    """A trainer of a user's, whose log may hold anything from one evaluation to the next."""

    def log(self, logs, *args, **kwargs):
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize("restored", [False, True])
def test_what_is_counted_is_kept_where_trainer_restores_its_callbacks(tmp_path, restored):
    def trainer(name, **changes):
        teacher = teacher_of(CLASSIFIER)
        more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
        return trainer_for(student_of(teacher, [0, 1, 3]), teacher, tmp_path / name, CLASSIFIER, **more)

    whole, resumed = trainer("whole"), trainer("resumed", restore_callback_states_from_checkpoint=restored)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.layer_forwards == whole.layer_forwards


# What does not fit.


def misfits():
    teacher = teacher_of(CLASSIFIER)
    larger = teacher_of(CLASSIFIER, vocab_size=VOCABULARY + 1)
    cut = student_of(teacher, [0, 2])
    unknown = student_of(teacher, [0, 2])
    del unknown.config.hf_layerdrop
    other_head = build("BertForTokenClassification")
    wide = teacher_of(CLASSIFIER, hidden_size=32)
    return {
        "no head": (cut, BertModel(tiny_config("BertModel")), {}, "no head"),
        "another head": (cut, other_head, {}, "same head"),
        "vocabularies": (cut, larger, {}, "vocab_size 61 and the student 60"),
        "labels": (cut, teacher_of(CLASSIFIER, num_labels=5), {}, "num_labels 5 and the student 2"),
        "widths": (cut, wide, {}, "hidden_weight=0"),
        "itself": (teacher, teacher, {}, "the student itself"),
        "unknown layers": (unknown, teacher, {}, "student_of"),
        "label smoothing": (cut, teacher, {"label_smoothing_factor": 0.1}, "leave it at 0"),
    }


@pytest.mark.parametrize("case", misfits())
def test_what_does_not_fit_is_refused_before_training(tmp_path, case):
    student, teacher, changes, said = misfits()[case]
    with pytest.raises(DistillationError, match=said):
        trainer_for(student, teacher, tmp_path, CLASSIFIER, **changes)


def test_models_of_other_widths_are_compared_by_their_predictions_alone(tmp_path):
    teacher = teacher_of(CLASSIFIER, hidden_size=32)
    student = teacher_of(CLASSIFIER, num_hidden_layers=3)
    trainer = trainer_for(student, teacher, tmp_path, CLASSIFIER, only(soft_weight=1.0))
    assert training_loss(trainer, batch_of(CLASSIFIER)).item() > 0


def test_labels_are_needed_for_the_hard_loss_alone(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    batch = {name: value for name, value in batch_of(CLASSIFIER).items() if name != "labels"}
    with pytest.raises(DistillationError, match="only input_ids, attention_mask"):
        training_loss(trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER), batch)
    soft = trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER, only(soft_weight=1.0))
    assert training_loss(soft, batch).item() == training_loss(soft, batch_of(CLASSIFIER)).item()


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
    with pytest.raises(LayerDropConfigError, match="cannot drop"):
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


# The command.

FLAGS = ("--max_steps", "2", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "4")


def command(model, rows, output, *more):
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    return ["distill", str(model), *files, "--output", str(output), *more]


def test_the_command_writes_a_plain_student_and_prints_what_it_cost(model, rows, tmp_path, capsys):
    output = tmp_path / "out" / "student"
    assert run([*command(model, rows, output, "--keep-layers", "3", *FLAGS)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("teacher", "cut, untrained", "distilled student", "accuracy"))
    assert "Layer forwards in training: 14 (8 of the teacher, 6 of the student)" in printed
    assert [path.name for path in output.parent.iterdir()] == ["student"]  # no checkpoints are left
    student = AutoModelForSequenceClassification.from_pretrained(output)
    teacher = AutoModelForSequenceClassification.from_pretrained(model)
    assert student.config.num_hidden_layers == 3
    weights = [network.bert.encoder.layer[0].output.dense.weight for network in (student, teacher)]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=0.01)
    assert AutoTokenizer.from_pretrained(output)("good film").input_ids
    provenance = json.loads((output / "config.json").read_text())["hf_layerdrop"]
    assert provenance["keep_layers"] == {"encoder": [0, 1, 3]}
    assert provenance["distilled_with"] == DistillationConfig().to_dict()
    card = (output / "README.md").read_text()
    assert "trained to imitate the whole model" in card
    assert "weights unchanged" not in card


def test_the_command_goes_on_from_its_own_checkpoints(model, rows, tmp_path, capsys):
    ends = []
    for name in ("whole", "stopped"):
        output = tmp_path / name
        flags = (*FLAGS[2:], "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")
        if name == "stopped":  # as if the run had been killed after two steps
            (tmp_path / "kept" / "checkpoint-4").rename(tmp_path / "unused")
            flags += ("--resume_from_checkpoint", "last")
        assert run(command(model, rows, output, *flags, "--output_dir", str(tmp_path / "kept"))) == 0
        ends.append(load_file(output / "model.safetensors"))
    assert_same_tensors(*ends)
    assert (tmp_path / "kept").is_dir()  # a folder that was named is the user's
    other = ("--keep-layers", "0,1", "--output_dir", str(tmp_path / "kept"), "--resume_from_checkpoint", "last")
    assert run(command(model, rows, tmp_path / "other", *other, "--use_cpu")) == 2
    assert "[0, 3]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-layers", "all"], "all 4 layers of the encoder"),
        (["--keep-layers", "9"], "from 1 to 4"),
        (["--temperature", "0"], "above 0"),
        (["--hard-weight", "-1"], "hard_weight is -1.0"),
        (["--soft-weigth", "1"], "--soft-weight"),
        (["--task", "mnli"], "3 labels"),
        (["--task", "mlm"], "Task mlm is no classification of texts"),
        (["--task", "token-classification"], "Task token-classification is no classification"),
        (["--train-file", "none.csv"], "none.csv"),
        (["--resume_from_checkpoint"], "no complete checkpoint"),
        (["--output", "."], "--overwrite"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(model, rows, tmp_path, arguments, said, capsys):
    assert run(command(model, rows, tmp_path / "out", *arguments)) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [rows]


def test_a_model_without_a_task_head_is_no_teacher(rows, tmp_path, capsys):
    build("BertForMaskedLM").save_pretrained(tmp_path / "mlm")
    assert run(command(tmp_path / "mlm", rows, tmp_path / "out")) == 2
    assert "BertForMaskedLM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
