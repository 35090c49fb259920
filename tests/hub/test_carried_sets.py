"""Recommended sets on the Hub: only kept bytes travel for them, a cut takes its own along, and no path of a machine."""

from __future__ import annotations

import json
import logging

import pytest
from huggingface_hub import HfApi, ModelCard

from classifiers import save_classifier
from conftest import assert_same_tensors, cut_by_hand
from hf_layerdrop import (
    CheckpointError,
    KeepLayersError,
    load_checkpoint,
    pipeline,
    prune_layers,
    push_pruned_to_hub,
    read_recommended,
    save_pruned,
    write_recommended,
)
from hub_server import HubServer
from tables import table_for

REPO, CUT = "alice/sst2", "alice/small"
WEIGHTS = r"resolve/.*\.safetensors$"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def source(tmp_path):
    folder = save_classifier(tmp_path / "private" / "sst2")
    write_recommended(table_for(), folder)
    notes = folder / ".cache" / "huggingface"
    notes.mkdir(parents=True)
    (notes / "layerdrop_files.json").write_text(json.dumps({"validation_file": [str(tmp_path / "private/rows.csv")]}))
    return folder


def layers_of(model):
    return model.config.hf_layerdrop["keep_layers"]["encoder"]


def test_of_the_hub_only_the_kept_layers_travel(hub, source):
    hub.add_folder(REPO, source)
    whole = load_checkpoint(source)
    model = load_checkpoint(REPO, keep_layers="best:2")
    assert_same_tensors(model.state_dict(), cut_by_hand(whole, {"encoder": [1, 2]}).state_dict())
    by_best = hub.bytes_sent(WEIGHTS)
    hub.requests.clear()
    load_checkpoint(REPO, keep_layers=[0, 1])
    assert by_best == hub.bytes_sent(WEIGHTS) < 0.8 * (source / "model.safetensors").stat().st_size
    hub.requests.clear()
    assert layers_of(load_checkpoint(REPO, keep_layers="fastest:0.99")) == [0, 1, 3]
    assert not [request for request in hub.requests if "rows.csv" in request.path]


def test_a_bare_depth_asks_for_no_table(hub, source):
    hub.add_folder(REPO, source)
    assert layers_of(load_checkpoint(REPO, keep_layers=2)) == [0, 3]
    assert not [request for request in hub.requests if "layerdrop.json" in request.path]


def test_the_table_is_that_of_the_revision(hub, source):
    repo = hub.add_folder(REPO, source)
    old = repo.branches["main"]
    files = {**repo.files(), "layerdrop.json": b"broken"}
    repo.commit("break it", files, frozenset(["model.safetensors"]))
    assert layers_of(load_checkpoint(REPO, keep_layers="best:2", revision=old)) == [1, 2]
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_checkpoint(REPO, keep_layers="best:2")
    assert layers_of(load_checkpoint(REPO, keep_layers=2)) == [0, 3]


def test_once_fetched_it_is_not_asked_for_again_and_works_offline(hub, source):
    hub.add_folder(REPO, source)
    load_checkpoint(REPO, keep_layers="best:2")
    hub.requests.clear()
    load_checkpoint(REPO, keep_layers="best:2")
    assert not [request for request in hub.requests if "layerdrop.json" in request.path]
    hub.requests.clear()
    assert layers_of(load_checkpoint(REPO, keep_layers="best:2", local_files_only=True)) == [1, 2]
    assert not hub.requests


def test_a_repository_without_a_table_and_one_without_end(hub, source):
    (source / "layerdrop.json").unlink()
    repo = hub.add_folder(REPO, source)
    with pytest.raises(KeepLayersError, match="no recommended sets beside 'alice/sst2'"):
        read_recommended(REPO)
    repo.commit("huge", {**repo.files(), "layerdrop.json": b" " * 1_000_001}, frozenset(["model.safetensors"]))
    hub.requests.clear()
    with pytest.raises(CheckpointError, match=r"'alice/sst2' cannot be used \(it is larger than 1 MB\)"):
        read_recommended(REPO)
    assert hub.bytes_sent("layerdrop.json") < 1000


def test_a_push_takes_the_sets_within_it_along(hub, source, tmp_path):
    push_pruned_to_hub(source, CUT, keep_layers="fastest:0.99")
    files = hub.repos[CUT].files()
    assert not any(str(tmp_path) in content.decode("utf-8", "replace") for content in files.values())
    assert not [name for name in files if ".cache" in name]
    table = read_recommended(CUT)
    assert table == table_for().cut({"encoder": (0, 1, 3)})
    assert layers_of(load_checkpoint(CUT, keep_layers="best:1")) == [2]
    card = ModelCard(files["README.md"].decode())
    assert "## Recommended sets" in card.text
    assert "| **3** | **0, 1, 3** |" in card.text  # the source's table says what was measured
    assert card.data.eval_results[0].metric_value == 0.895


def test_an_upload_of_the_folder_leaves_the_places_of_files_behind(hub, source, tmp_path):
    """As Trainer and ``hf upload`` do it."""
    HfApi(endpoint=hub.url).create_repo(CUT)
    HfApi(endpoint=hub.url).upload_folder(repo_id=CUT, folder_path=source)
    files = hub.repos[CUT].files()
    assert "layerdrop.json" in files
    assert not any(str(tmp_path).encode() in content for content in files.values())


def test_a_push_takes_the_table_of_another_model_away(hub, source):
    push_pruned_to_hub(source, CUT, keep_layers="best:2")
    assert "layerdrop.json" in hub.repos[CUT].files()
    (source / "layerdrop.json").unlink()
    push_pruned_to_hub(source, CUT, keep_layers=2)
    assert "layerdrop.json" not in hub.repos[CUT].files()


def test_a_pipeline_serves_the_measured_set(hub, source):
    hub.add_folder(REPO, source)
    for name in (source, REPO):
        assert layers_of(pipeline("text-classification", str(name), keep_layers="best:2").model) == [1, 2]


def test_a_model_in_memory_takes_no_table_along(source, tmp_path):
    """It may have been trained since it was loaded."""
    save_pruned(load_checkpoint(source), tmp_path / "out", keep_layers="best:2")
    assert layers_of(load_checkpoint(tmp_path / "out")) == [1, 2]
    assert not (tmp_path / "out" / "layerdrop.json").exists()
    model = prune_layers(load_checkpoint(source), 3)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "layerdrop.json").exists()


def test_the_whole_model_takes_the_whole_table(source, tmp_path):
    save_pruned(source, tmp_path / "out", keep_layers=None)
    assert read_recommended(tmp_path / "out") == table_for()


def test_a_broken_table_is_left_out_with_a_warning(source, tmp_path, caplog):
    (source / "layerdrop.json").write_text('{"version": 1, "sets": NaN}')
    with caplog.at_level(logging.WARNING):
        save_pruned(source, tmp_path / "out", keep_layers=2)
    assert "layerdrop.json" in caplog.text
    assert not (tmp_path / "out" / "layerdrop.json").exists()


def test_a_folder_with_notes_of_files_may_be_replaced(source, tmp_path):
    save_pruned(source, tmp_path / "out", keep_layers="best:2")
    (tmp_path / "out" / ".cache" / "huggingface").mkdir(parents=True)
    save_pruned(source, tmp_path / "out", keep_layers=3, overwrite=True)
    assert layers_of(load_checkpoint(tmp_path / "out")) == [0, 1, 3]
