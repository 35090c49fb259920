"""Answers that are none of the Hub's, and answers that ask to wait for a day: one sentence, at once."""

from __future__ import annotations

import pytest

from classifiers import save_classifier
from hf_layerdrop import load_checkpoint, push_pruned_to_hub, save_pruned
from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.errors import HubError, LayerDropError
from hub_server import HubServer
from strangers import listing, refused, taken_or_refused

REPO = "alice/deep"
PAGES = {
    "a page": b"<!doctype html><html><body>Log in to this network</body></html>",
    "nothing": b"",
    "a list": b"[1, 2]",
    "a text": b'"ok"',
    "null": b"null",
    "an empty object": b"{}",
    "an object of others": b'{"siblings": 3, "sha": [1], "id": {}}',
    "nested": b"[" * 10_000,
    "no UTF-8": b'{"a": "\xff"}',
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        server.add_folder(REPO, save_classifier(tmp_path / "model"))
        server.waits = waits
        yield server


def doors(tmp_path):
    return {
        "load": lambda: load_checkpoint(REPO),
        "cut": lambda: load_checkpoint(REPO, keep_layers=2),
        "save": lambda: save_pruned(REPO, tmp_path / "out", keep_layers=2),
        "tokenizer": lambda: load_tokenizer(REPO),
        "push": lambda: push_pruned_to_hub(tmp_path / "model", "alice/small", keep_layers=2),
    }


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_who_is_not_the_hub(page, hub, tmp_path, capsys):
    hub.page = page
    before = listing(tmp_path)
    for command in ("inspect", "prune"):
        more = ["--keep-layers", "2", "--output", tmp_path / "out"] if command == "prune" else []
        assert REPO in refused(capsys, command, REPO, *more)
    for door in doors(tmp_path).values():
        with pytest.raises(LayerDropError) as caught:
            door()
        assert "\n" not in str(caught.value)
    assert {path for path in listing(tmp_path) - before if not path.startswith("home")} == set()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "api/models", "tokenizer.json", "whoami"])
def test_nobody_waits_for_a_day(file, status, hub, tmp_path):
    for name, door in doors(tmp_path).items():
        hub.waits.clear()
        hub.faults.clear()
        hub.fail(file, status, times=1000, body={"headers": {"Retry-After": "100000"}})
        taken_or_refused(door)
        assert sum(hub.waits) < 300, (name, hub.waits)


def test_a_wait_of_seconds_is_kept(hub):
    hub.fail(r"/config\.json", 429, times=1, method="GET", body={"headers": {"Retry-After": "7"}})
    assert load_checkpoint(REPO, keep_layers=2).config.num_hidden_layers == 2
    assert 8.0 in hub.waits


def test_the_hubs_client_is_left_as_it_was(hub):
    from huggingface_hub import get_session

    before = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    hub.fail(r"config\.json", 429, times=9, body={"headers": {"Retry-After": "100000"}})
    with pytest.raises(HubError, match="asks to come back in 100000 seconds"), bounded_waits():
        load_checkpoint(REPO)
    assert get_session().event_hooks == before
