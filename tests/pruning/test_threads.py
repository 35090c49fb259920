"""Threads that load, cut and measure models of their own leave torch and transformers as they were."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import nn
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PreTrainedModel

import hf_layerdrop
from conftest import assert_same_tensors, batch_for, build, output_of, tiny_config
from hf_layerdrop import evaluate_depths, inject_layerdrop, prune_layers, sub_network
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.injected import find_injected
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


def in_threads(*works: Callable[[], object]) -> None:
    """Let each work in a thread of its own, and raise what one raises; they begin one after another."""
    with ThreadPoolExecutor(len(works)) as pool:
        begun = []
        for work in works:
            begun.append(pool.submit(work))
            time.sleep(0.05)
        for done in begun:
            done.result(timeout=20)


def two_towers() -> EncoderDecoderModel:
    encoder, decoder = tiny_config("BertModel"), tiny_config("BertLMHeadModel")
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def test_a_whole_and_its_part_are_cut_in_turns() -> None:
    model, seen = build(HEADS[0]), []

    def cut(part: PreTrainedModel, depth: int) -> None:
        with sub_network(part, depth):
            time.sleep(0.1)
            seen.append((depth, len(model.bert.encoder.layer), model.config.num_hidden_layers))

    in_threads(lambda: cut(model, 3), lambda: cut(model.bert, 2), lambda: cut(model, 1))
    assert sorted(seen) == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 4


@pytest.mark.parametrize("change", [lambda whole: inject_layerdrop(whole, 0.1), lambda whole: prune_layers(whole, 3)])
def test_a_change_of_the_whole_waits_for_the_block_of_a_part_in_which_the_whole_is_cut(
    change: Callable[[PreTrainedModel], object],
) -> None:
    model = build(HEADS[0])

    def nested() -> None:
        with sub_network(model.bert, 3):
            time.sleep(0.2)
            with sub_network(model, 2):
                assert model.config.num_hidden_layers == 2

    in_threads(nested, lambda: change(model))
    assert find_injected(model) is not None or len(model.bert.encoder.layer) == 3


def test_a_change_of_the_whole_within_the_block_of_a_part_is_refused_and_does_not_wait() -> None:
    model = two_towers()

    def within() -> None:
        with sub_network(model.encoder, 3):
            time.sleep(0.2)
            with pytest.raises(LayerDropStateError, match="prune_layers was called while this BertModel"):
                prune_layers(model, {"encoder": 2})

    in_threads(within, lambda: prune_layers(model, {"encoder": 3}))
    assert depths_of(model) == {"encoder": 3, "decoder": 4}


def test_parts_beside_each_other_do_not_wait_and_threads_that_wait_for_each_other_are_told() -> None:
    model, both, refused = two_towers(), Barrier(2), []

    def cut(part: PreTrainedModel) -> None:
        try:
            with sub_network(part, 3):
                both.wait(timeout=20)
                with sub_network(model, {"encoder": 2, "decoder": 2}):
                    pass
        except LayerDropStateError as error:
            refused.append(str(error))

    in_threads(lambda: cut(model.encoder), lambda: cut(model.decoder))
    assert len(refused) == 1
    assert "waits for this" in refused[0]
    assert depths_of(model) == {"encoder": 4, "decoder": 4}


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
