"""Teachers of three kinds, rows for them, and trainers of their students."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
)

from conftest import (
    DEPTH,
    VOCABULARY,
    build,
)
from hf_layerdrop.distillation.config import DistillationConfig
from hf_layerdrop.distillation.trainer import DistillationTrainer

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
