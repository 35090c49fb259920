"""Several batches a step train as one batch of all their rows, whatever a head does with Trainer's count of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from conftest import build
from hf_layerdrop.injection.inject import inject_layerdrop, layerdrop_state
from hf_layerdrop.training.accumulation import LossScaling
from hf_layerdrop.training.trainers import TaskTrainer
from ranks import SUPPORT, found_by_ranks

ROWS, STEPS = 16, 3
IGNORES, TOKENS, DIVIDES = "BertForSequenceClassification", "BertForMaskedLM", "BertLMHeadModel"


def rows(head: str) -> list[dict[str, torch.Tensor]]:
    """Rows of one length, of which each has another number of tokens to predict."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(ROWS * STEPS):
        ids = torch.randint(5, 60, (8,), generator=generator)
        tokens = ids.clone()
        tokens[: number % 7] = -100
        found.append({"input_ids": ids, "labels": torch.tensor(number % 2) if head == IGNORES else tokens})
    return found


def trained(
    head: str,
    folder: Path,
    accumulated: int,
    kind: type[Trainer] = TaskTrainer,
    *,
    layerdrop: bool = True,
    told: bool = False,
    **changes: object,
) -> tuple[PreTrainedModel, Trainer]:
    model = build(head)
    if layerdrop:
        inject_layerdrop(model, (0, 1, 1, 0))  # no draw, which would be another for each of the batches
    if told:
        model.accepts_loss_kwargs = False
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=ROWS // accumulated,
        gradient_accumulation_steps=accumulated,
        train_sampling_strategy="sequential",
        optim="sgd",  # AdamW would hide most of a factor
        learning_rate=0.1,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        **{"max_steps": STEPS, **changes},
    )
    trainer = kind(model, arguments, train_dataset=rows(head))
    trainer.train()
    return model, trainer


def apart(model: PreTrainedModel, other: PreTrainedModel) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothed"])
@pytest.mark.parametrize("head", [IGNORES, TOKENS, DIVIDES])
def test_four_batches_a_step_train_as_one_that_is_four_times_as_large(
    head: str, changes: dict[str, float], tmp_path: Path
) -> None:
    accumulated, _ = trained(head, tmp_path, 4, **changes)
    at_once, _ = trained(head, tmp_path, 1, **changes)
    assert apart(accumulated, at_once) < 1e-6
    assert apart(at_once, build(head)) > 1e-2


@pytest.mark.parametrize(("head", "ignores"), [(IGNORES, True), (TOKENS, True), (DIVIDES, False)])
def test_only_a_head_that_ignores_the_count_is_weighed(head: str, ignores: bool, tmp_path: Path) -> None:
    assert trained(head, tmp_path, 4)[1]._ignores is ignores


def test_one_batch_a_step_on_one_rank_is_left_alone(tmp_path: Path) -> None:
    assert trained(IGNORES, tmp_path, 1)[1]._ignores is None


def test_asking_leaves_random_numbers_and_draws_as_they_are(tmp_path: Path) -> None:
    model = build(IGNORES, hidden_dropout_prob=0.5)
    inject_layerdrop(model, 0.5)
    arguments = TrainingArguments(str(tmp_path), gradient_accumulation_steps=2, use_cpu=True, report_to=[])
    trainer = TaskTrainer(model.train(), arguments, train_dataset=rows(IGNORES))
    batch = {name: torch.stack([row[name] for row in rows(IGNORES)[:4]]) for name in ("input_ids", "labels")}
    before, draw = torch.get_rng_state(), layerdrop_state(model).draws["encoder"]
    assert trainer._ignores_count(batch, torch.tensor(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert (draw.forward, draw.forwards, draw.layer_forwards) == (0, 0, 0)


# --- a Trainer of the user's own ----------------------------------------------------------------------------------


class Weighing(LossScaling, Trainer):
    """What docs/distributed.md tells users to write."""


def first_step(head: str, folder: Path, accumulated: int, kind: type[Trainer], **how: bool) -> torch.Tensor:
    """Return how one step of SGD moves the head."""
    model, _ = trained(head, folder, accumulated, kind, max_steps=1, **how)
    pairs = zip(model.parameters(), build(head).parameters(), strict=True)
    return torch.cat([(one - two).detach().flatten() for one, two in pairs])


@pytest.mark.parametrize("layerdrop", [True, False])
def test_a_plain_trainer_takes_four_times_the_step_with_layerdrop_or_without(layerdrop: bool, tmp_path: Path) -> None:
    at_once = first_step(IGNORES, tmp_path, 1, Trainer, layerdrop=layerdrop)
    accumulated = first_step(IGNORES, tmp_path, 4, Trainer, layerdrop=layerdrop)
    assert torch.allclose(accumulated, 4 * at_once, atol=1e-6)  # if not, transformers has mended it: tell docs
    assert at_once.abs().max() > 1e-3


@pytest.mark.parametrize("kind", [Trainer, Weighing])
def test_a_trainer_is_right_once_told_that_the_head_ignores_the_count(kind: type[Trainer], tmp_path: Path) -> None:
    at_once = first_step(IGNORES, tmp_path, 1, kind)
    assert torch.allclose(first_step(IGNORES, tmp_path, 4, kind, told=True), at_once, atol=1e-6)


def test_batches_of_unequal_numbers_of_labels_need_the_mixin(tmp_path: Path) -> None:
    at_once = first_step(TOKENS, tmp_path, 1, Trainer)
    told, weighed = first_step(TOKENS, tmp_path, 4, Trainer, told=True), first_step(TOKENS, tmp_path, 4, Weighing)
    assert torch.allclose(weighed, at_once, atol=1e-6)
    assert (told - at_once).norm() > 1e-3 * at_once.norm()


# --- on two ranks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    return found_by_ranks(SUPPORT / "accumulation_worker.py", str(tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("execution", ["skip", "mask"])
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_unequal_batches_on_two_ranks_train_as_in_one_process(ranks: dict, way: str, execution: str) -> None:
    for found in ranks[f"{way} {execution}"]:
        assert found["distance"] < 1e-5
        assert found["to means"] > 1e-3
        assert found["ignores"]
        assert found.get("sharded", 4) == 4
