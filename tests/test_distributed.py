"""Two ranks: the same draws, the gradients of one process, no gathers for dropped layers, errors in place of hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import batch_for, build
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import inject_layerdrop

WORKER = Path(__file__).with_name("distributed_worker.py")
DDP = [
    f"ddp-{find_unused}-{checkpointing}-{optimizer}"
    for find_unused in (False, True)
    for checkpointing in ("none", "plain", "reentrant")
    for optimizer in ("sgd", "adamw")
    if not (find_unused and checkpointing == "reentrant")  # impossible for any model, see below
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of two gloo processes found, by case."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(WORKER), str(tmp_path_factory.mktemp("trainer"))],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,  # a hang is what this is about
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {entry["case"]: entry["ranks"] for entry in said}


@pytest.mark.parametrize("case", DDP)
def test_ddp_ends_where_one_process_ends(ranks: dict, case: str) -> None:
    for found in ranks[case]:
        assert found["distance"] < 1e-5  # with momentum and decay: a zero gradient in place of None would show
        assert found["spread"] == 0
        assert found["dropped"] > 0  # layers that the optimizer saw without a gradient


def test_what_no_model_can_do_is_said_before_the_first_step(ranks: dict) -> None:
    assert all("use_reentrant" in found["error"] for found in ranks["impossible"])


def test_ranks_that_disagree_are_an_error_on_every_rank(ranks: dict) -> None:
    for found in ranks["disagreement"]:
        seeds, rates = found["errors"]
        assert "seed 0" in seeds
        assert "seed 1" in seeds
        assert "0.1" in rates
        assert "0.3" in rates


def test_fsdp_gathers_no_dropped_layer_and_ends_where_one_process_ends(ranks: dict) -> None:
    for found in ranks["fsdp"]:
        none_dropped, half_dropped, all_dropped = found["gathered"]
        assert none_dropped > half_dropped > all_dropped
        assert all_dropped == 8  # one a step, for what is in no layer
        assert found["distance"] < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_needs_no_flag(ranks: dict, checkpointing: bool) -> None:
    for found in ranks[f"trainer-{checkpointing}"]:
        assert found["spread"] == 0
        assert found["moved"] > 0
        assert found["steps"] == 5  # Trainer's steps were followed


def test_data_parallel_is_refused_with_what_to_do_instead() -> None:
    model = build("BertForSequenceClassification").train()
    inject_layerdrop(model, 0.5)
    encoder = model.bert.encoder._replicate_for_data_parallel()
    with pytest.raises(LayerDropStateError, match="accelerate launch"):
        encoder(torch.zeros(1, 4, 16), attention_mask=None)
    assert model(**batch_for("BertForSequenceClassification")).logits.shape == (3, 2)
