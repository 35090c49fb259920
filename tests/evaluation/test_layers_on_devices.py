"""The time of a layer is taken in the queue of the device that runs it, where a model lies on several."""

from types import SimpleNamespace

import pytest
import torch

from conftest import build
from hf_layerdrop.evaluation import prefix_sharing
from hf_layerdrop.evaluation.prefix_sharing import shared_prefixes
from hf_layerdrop.pruning.prune import Cutter

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(("lies_on", "timed_on"), [(SECOND, SECOND), ("cpu", FIRST), ("meta", FIRST)], ids=str)
def test_each_layer_is_timed_where_it_runs(monkeypatch, lies_on, timed_on):
    timed = []

    class Watch:  # as on a machine with two devices
        seconds = 0.0

        def __init__(self, device):
            timed.append(device)

        def stop(self):
            return self

    monkeypatch.setattr(prefix_sharing, "Stopwatch", Watch)
    model = build("BertForSequenceClassification").eval()
    for layer in model.bert.encoder.layer:
        monkeypatch.setattr(layer, "parameters", lambda: iter([SimpleNamespace(device=torch.device(lies_on))]))
    with torch.no_grad(), shared_prefixes(Cutter(model), FIRST) as runner:
        runner.run({"encoder": (0, 1)}, lambda: model(input_ids=torch.ones(2, 3, dtype=torch.long)))
    assert timed == [FIRST, timed_on, timed_on]  # the whole forward begins and ends on the first
