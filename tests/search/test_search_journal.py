"""The journal of a search: nothing that was scored is lost, and nothing of another search is taken."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import warm
from conftest import build
from hf_layerdrop.errors import (
    LayerDropConfigError,
)
from searching import BERT, labelled, search


def interrupting(after: int):
    """Return an evaluate function that is interrupted after so many calls, and how often it was called."""
    calls = []

    def evaluate(model) -> float:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return float(model(**labelled()[0]).logits.sum())

    return evaluate, calls


def test_an_interrupted_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    journal, model = tmp_path / "logs" / "search.journal", build(BERT)
    settings = {"strategy": "exhaustive", "metric": None, "test_dataset": None, "journal": journal}
    evaluate, calls = interrupting(after=4)
    with pytest.raises(KeyboardInterrupt):
        search(model, evaluate=evaluate, **settings)
    assert len(journal.read_text().splitlines()) == len(calls) == 4
    complete = search(model, evaluate=interrupting(99)[0], **{**settings, "journal": None})
    calls.clear()
    found = search(model, evaluate=evaluate, **settings)
    assert len(calls) == 1 + 6 - 4
    assert found.from_journal == 3  # and the whole model
    assert found.to_dict() == {**complete.to_dict(), "from_journal": 3}


def test_what_was_scored_before_an_interrupt_is_not_run_again_where_prefixes_are_shared(tmp_path: Path) -> None:
    model = build(BERT, num_hidden_layers=8)
    settings = {"strategy": "exhaustive", "depth": 4, "journal": tmp_path / "journal"}
    seen = []

    def stop(*_):
        seen.append(1)
        if len(seen) == 100:
            raise KeyboardInterrupt

    hook = model.classifier.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        search(model, **settings)
    hook.remove()
    lines = len((tmp_path / "journal").read_text().splitlines())
    assert 100 / 2 - 16 <= lines < 71
    runs = []
    model.classifier.register_forward_hook(lambda *_: runs.append(1))
    found = search(model, **settings)
    # Two batches each; then the winner, five runner-ups and the whole model on the other data.
    assert len(runs) == 2 * (71 - lines) + 2 * 7
    assert found.from_journal == lines - 1
    assert {**found.to_dict(), "from_journal": 0, "layer_forwards": 0} == {
        **search(model, **{**settings, "journal": None}).to_dict(),
        "layer_forwards": 0,
    }


def search_and_stop(journal: Path, at: int, said: Path) -> None:
    """Search, and stand still when it comes to a sub-network by number: until it is killed, however long that takes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started in the background ignores it
    count = itertools.count(1)

    def evaluate(model: torch.nn.Module) -> float:
        if next(count) == at:
            time.sleep(3600)
        return float(model(**labelled()[0]).logits.sum())

    model = build(BERT, num_hidden_layers=8)
    settings = {"strategy": "exhaustive", "depth": 4, "journal": journal}
    found = search(model, evaluate=evaluate, metric="sum", test_dataset=None, **settings)
    said.write_text(json.dumps([found.from_journal, found.evaluations]))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_loses_nothing_that_was_scored(tmp_path: Path, kind: signal.Signals) -> None:
    journal, said = tmp_path / "journal", tmp_path / "said"
    process = warm.start(search_and_stop, journal, 60, said)
    while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.02)
    os.kill(process.pid, kind)
    process.join()
    assert process.exitcode
    assert not said.exists()
    lines = journal.read_bytes().count(b"\n")
    assert 20 <= lines < 71
    with journal.open("ab") as file:
        file.write(b'{"fingerprint": "a line that was cut off')
    assert warm.end_together([warm.start(search_and_stop, journal, 0, said)]) == [0]
    assert json.loads(said.read_text()) == [lines - 1, 70]
    assert journal.read_bytes().count(b"\n") == 71
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_journal_tells_models_data_and_metrics_apart(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = search(build(BERT), journal=journal, strategy="exhaustive")
    assert first.from_journal == 0
    assert search(build(BERT), journal=journal, strategy="exhaustive").from_journal == 6
    assert search(build(BERT), journal=journal, strategy="spread").from_journal == 1  # whatever the strategy
    assert search(build(BERT, seed=1), journal=journal, strategy="exhaustive").from_journal == 0
    assert search(build(BERT), labelled(first=5), journal=journal, strategy="exhaustive").from_journal == 0
    assert search(build(BERT), journal=journal, strategy="exhaustive", metric="accuracy").from_journal == 0


@pytest.mark.parametrize("content", ["a novel\n", '{"name": "a config"}\n', "unfinished", "[1]\n", "\x00\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "precious"
    file.write_text(content)
    with pytest.raises(LayerDropConfigError, match="not one of a search"):
        search(build(BERT), journal=file)
    assert file.read_text() == content
