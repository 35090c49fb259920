"""Nothing of ours makes the host wait for a device, but to read a result at the end: however many batches there are.

The meta device stands for a device here. It holds no values, so that whatever asks for one has to be answered, and is
seen; what a model of transformers asks for by itself does not count.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import DEPTH, VOCABULARY, build
from hf_layerdrop import LayerDropConfig, evaluate_depths, inject_layerdrop, search_layers, set_step
from hf_layerdrop.evaluation.evaluate import Evaluator

HEADS = ["BertForSequenceClassification", "RobertaForMaskedLM", "BartForConditionalGeneration"]
STRATEGIES = ["beam", "block_influence", "activation_norm", "angular_distance", "leave_one_out", "weight_norm"]
# Through these, code of ours asks as if by itself.
IN_BETWEEN = ("/torch/", "/accelerate/", "/transformers/trainer_pt_utils.py", "test_no_waiting.py", "<")


def asker():
    """Return the file and line of ours that asks for a value; None if it is a library by itself."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/hf_layerdrop/" in name:
            return f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        if not any(part in name for part in IN_BETWEEN):
            return None
        frame = frame.f_back
    return None


class Waits(TorchDispatchMode):
    """Note who of ours waits for the meta device, and answer: a scalar is ``scalar``, a tensor on the host is ones."""

    def __init__(self, scalar=0):
        super().__init__()
        self.ours = []
        self._scalar = scalar

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = next((value for value in args if isinstance(value, torch.Tensor)), None)
        on_device = source is not None and source.device.type == "meta"
        name = func.overloadpacket.__name__
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if on_device and name == "_local_scalar_dense":
            return self._answer(type(torch.zeros((), dtype=source.dtype).item())(self._scalar))
        if on_device and name == "equal":
            return self._answer(True)
        if on_device and name == "nonzero":
            return self._answer(torch.zeros(1, source.dim(), dtype=torch.long, device="meta"))
        if name == "_to_copy" and source.device.type != (target or source.device.type):
            copied = torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=target)
            return copied if kwargs.get("non_blocking") else self._answer(copied)
        return func(*args, **kwargs)

    def _answer(self, value):
        if (found := asker()) is not None:
            self.ours.append(found)
        return value


def batches_for(head, count, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, VOCABULARY, (3, 9), generator=generator) for _ in range(count)]
    labels = [torch.tensor([0, 1, 1]) if head.endswith("Classification") else batch for batch in ids]
    return [
        {"input_ids": batch.to(device), "attention_mask": torch.ones_like(batch).to(device), "labels": label.to(device)}
        for batch, label in zip(ids, labels, strict=True)
    ]


def train(head, device, config):
    """Take training steps of two micro-steps each, by hand."""
    model = inject_layerdrop(build(head).to(device), config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = batches_for(head, 1, device)[0]
    for step in range(2):
        for micro_step in range(2):
            set_step(model, step, micro_step)
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CONFIGS = {
    "layers": LayerDropConfig(0.5),
    "depths": LayerDropConfig(0.3, sampler="depth"),
    "heads": LayerDropConfig(0.5, structure="head"),
    "sub-layers": LayerDropConfig(0.5, structure=("attention", "ffn")),
    "mask": LayerDropConfig(0.5, execution="mask"),
}
LEARNED = LayerDropConfig(0.5, sampler="learned")  # it copies to the host, which takes a real device


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_waits_for_nothing(head, config):
    with Waits() as waits:
        train(head, "meta", config)
    assert waits.ours == []


@pytest.mark.parametrize("metric", [None, "perplexity"])
@pytest.mark.parametrize("head", HEADS)
def test_an_evaluation_reads_its_results_at_the_end(head, metric):
    found = {}
    for count in (1, 3):
        with Waits() as waits:
            evaluate_depths(build(head).to("meta"), batches_for(head, count), depths=[4, 2], metric=metric)
        found[count] = waits.ours
    assert found[1], "not even a result was read, so that nothing was seen"
    assert sorted(found[1]) == sorted(found[3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_search_reads_as_often_whatever_its_data(strategy):
    head, found = "BertForSequenceClassification", {}
    for count in (2, 4):
        with Waits() as waits:
            data = batches_for(head, count)
            search_layers(build(head).to("meta"), data, depth=2, strategy=strategy, metric="loss", progress=False)
        found[count] = waits.ours
    assert found[2]
    assert sorted(found[2]) == sorted(found[4])


def test_passes_that_share_prefixes_wait_once_each():
    model, kept = build("BertForSequenceClassification").to("meta"), [{"encoder": (0, last)} for last in (1, 2, 3)]
    evaluator = Evaluator(model, batches_for("BertForSequenceClassification", 3, "meta"), metric="loss")
    with Waits() as waits:
        results = []
        evaluator.measure_in_turn(kept, results.extend, at_most=1)
    assert sum(result.layer_forwards for result in results) == 4  # the first layer ran once a batch, in the first pass
    proofs = [place for place in waits.ours if place.startswith("unchanged")]
    assert len(proofs) == len(kept) - 1  # in the first nothing was shared


def test_what_was_shared_wrongly_is_run_again_without_sharing():
    model, kept = build("BertForSequenceClassification").to("meta"), [{"encoder": (0, last)} for last in (1, 2, 3)]
    forwards = {}
    for scalar in (False, True):  # what the device says at the end: whether anything was unequal
        with Waits(scalar):
            results = Evaluator(model, batches_for("BertForSequenceClassification", 2), metric="loss").measure(kept)
        forwards[scalar] = sum(result.layer_forwards for result in results)
    assert forwards == {False: 4, True: 2 * len(kept)}


def test_the_timer_of_a_device_waits_when_it_is_asked_and_not_before(monkeypatch):
    from hf_layerdrop.evaluation import stopwatch

    made = []

    class Event:  # as torch's, on a machine without a device
        def __init__(self, device, enable_timing=False):
            self.waited, self.at = False, len(made)
            made.append(self)

        def record(self, stream):
            assert stream == "its stream"

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, end):
            assert end.waited
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: "its stream")
    watch = stopwatch.Stopwatch(torch.device("cuda"))
    watch.stop()
    assert not any(event.waited for event in made)
    assert watch.seconds == made[-1].at - made[0].at
    assert watch.seconds == made[-1].at - made[0].at


# --- on a device ---------------------------------------------------------------------------------------------------

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which tells of each wait")


@contextmanager
def told_waits():
    """Note who of ours waits for the device, as CUDA tells it."""
    ours = []

    def note(*args, **kwargs):
        if (found := asker()) is not None:
            ours.append(found)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield ours
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("config", [*CONFIGS.values(), LEARNED], ids=[*CONFIGS, "learned"])
def test_a_training_step_on_a_device_waits_for_nothing(config):
    model = inject_layerdrop(build("BertForSequenceClassification").to("cuda"), config).train()
    batch = batches_for("BertForSequenceClassification", 1, "cuda")[0]
    model(**batch).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(8):
            set_step(model, step)
            model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("head", HEADS)
def test_an_evaluation_on_a_device_waits_as_often_whatever_its_data(head):
    found = {}
    for count in (2, 2, 5):
        model = build(head).to("cuda")
        with told_waits() as ours:
            results = evaluate_depths(model, batches_for(head, count), depths=[DEPTH, 3, 2], metric="loss")
        found[count] = ours
    assert sorted(found[2]) == sorted(found[5])
    assert all(result.seconds_per_batch > 0 for result in results)
