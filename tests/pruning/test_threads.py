"""Threads that load, cut and measure models of their own leave torch and transformers as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import hf_layerdrop
from conftest import assert_same_tensors, batch_for, build, output_of
from hf_layerdrop import evaluate_depths, prune_layers, sub_network
from hf_layerdrop.pruning.plan import forget

THREADS = 16
HEADS = ["BertForSequenceClassification", "RobertaForSequenceClassification", "BartForConditionalGeneration"]
KEPT = {"BartForConditionalGeneration": {"encoder": [0, 3], "decoder": [1, 2]}}


def kept(head: str) -> object:
    return KEPT.get(head, [0, 3])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {head: tmp_path_factory.mktemp(head) for head in set(HEADS)}
    for head, folder in places.items():
        build(head).save_pretrained(folder)
    return places


def test_models_of_many_threads_are_right_and_later_ones_are_filled(folders: dict[str, Path]) -> None:
    globals_before = PreTrainedModel.init_weights, nn.init.normal_, nn.init.kaiming_uniform_

    def work(number: int) -> None:
        head = HEADS[number % len(HEADS)]
        forget()  # so that each builds its models anew
        cls = getattr(hf_layerdrop, f"LayerDrop{head}")
        loaded = cls.from_pretrained(folders[head], keep_layers=kept(head)).eval()
        whole = cls.from_pretrained(folders[head], layerdrop=0.5).eval()
        batch = batch_for(head)
        with sub_network(whole, kept(head)):
            inside = output_of(whole, batch)
        assert torch.equal(inside, output_of(loaded, batch))
        labels = torch.tensor([0, 1, 0]) if "Classification" in head else batch["input_ids"]
        depths = [kept(head), "all"]
        cut, full = evaluate_depths(whole, [{**batch, "labels": labels}], depths=depths, progress=False)
        assert cut.metrics["loss"] != full.metrics["loss"]
        prune_layers(whole, kept(head))
        assert_same_tensors(whole.state_dict(), loaded.state_dict())

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(2 * THREADS)]:
            done.result()
    assert (PreTrainedModel.init_weights, nn.init.normal_, nn.init.kaiming_uniform_) == globals_before
    for head in set(HEADS):
        for name, weight in build(head).named_parameters():
            assert weight.abs().max() < 10, name
