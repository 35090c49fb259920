"""Of a model on the Hub only the kept bytes are fetched, once; whatever a server does, nothing wrong is kept."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub import constants, scan_cache_dir
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from conftest import assert_same_tensors, build, cut_by_hand, keep_all_stacks
from hf_layerdrop import load_checkpoint
from hf_layerdrop.checkpoints import downloads, http_ranges
from hf_layerdrop.checkpoints.headers import read_checkpoint
from hf_layerdrop.errors import CheckpointError
from hub_server import READ_TOKEN, HubServer

REPO = "alice/deep"
KEPT = [1, 3]
WEIGHTS = r"resolve/.*\.safetensors$"
# Layers of 0.8 MB, so that headers and rounding are small beside them.
WIDE = {"vocab_size": 60, "hidden_size": 256, "num_attention_heads": 2, "intermediate_size": 512}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(http_ranges, "_SECONDS_BETWEEN", 0.01)
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def kept_folders(tmp_path):
    """What stands in our own folder, half-written things included."""
    own = "models--*--hf_layerdrop--layers"
    return lambda: [*(tmp_path / "home/hub").glob(f"{own}/snapshots/*"), *(tmp_path / "home/hub").glob(f"{own}/.*")]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=6, initializer_range=0.3, max_position_embeddings=40, **WIDE)
    model = BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("deep")
    model.save_pretrained(folder)
    return model, folder


def load(keep_layers=KEPT, **kwargs):
    return load_checkpoint(REPO, keep_layers=keep_layers, **kwargs)


def check(model, source, kept=KEPT):
    assert_same_tensors(model.state_dict(), cut_by_hand(source, {"encoder": kept}).state_dict())


def cached_weights(hub_cache):
    return [path for path in hub_cache.rglob("*.safetensors") if "hf_layerdrop" not in str(path)]


# --- What is fetched ------------------------------------------------------------------------------


def test_bytes_served_are_those_of_the_kept_tensors_and_the_header(hub, deep, tmp_path, kept_folders):
    source, folder = deep
    hub.add_folder(REPO, folder)
    model = load()
    check(model, source)
    served = hub.bytes_sent(WEIGHTS)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert kept <= served <= 1.02 * kept + header + 8
    assert served < 0.6 * (folder / "model.safetensors").stat().st_size
    assert not cached_weights(tmp_path / "home")
    assert len(kept_folders()) == 1


def test_a_second_load_asks_for_no_weights_and_works_offline(hub, deep, monkeypatch):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load()
    hub.requests.clear()
    check(load(), source)
    assert not [request for request in hub.requests if ".safetensors" in request.path]
    hub.requests.clear()
    check(load(local_files_only=True), source)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check(load(), source)
    assert not hub.requests


def test_other_layers_and_other_commits_are_kept_apart(hub, deep, kept_folders):
    source, folder = deep
    repo = hub.add_folder(REPO, folder)
    check(load(), source)
    check(load([0, 5]), source, [0, 5])
    assert len(kept_folders()) == 2
    old = repo.branches["main"]
    with torch.no_grad():
        changed = BertForSequenceClassification(source.config).eval()
    changed.save_pretrained(folder.with_name("changed"))
    files = {path.name: path.read_bytes() for path in folder.with_name("changed").iterdir()}
    repo.commit("trained on", files, frozenset(["model.safetensors"]))
    check(load(), changed)
    check(load(revision=old), source)
    assert len(kept_folders()) == 3


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BartForConditionalGeneration"])
def test_shards_without_kept_tensors_are_not_asked_for(head, hub, tmp_path):
    source = build(head)
    source.save_pretrained(tmp_path / "shards", max_shard_size="6KB")
    shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 4
    hub.add_folder(REPO, tmp_path / "shards")
    kept = keep_all_stacks(source, KEPT)
    model = load(kept)
    assert_same_tensors(model.state_dict(), cut_by_hand(source, kept).state_dict())
    asked = {request.path.rpartition("/")[2] for request in hub.requests if ".safetensors" in request.path}
    names = read_checkpoint(tmp_path / "shards").tensors
    dropped = {info.file for name, info in names.items() if any(f".{i}." in name for i in (0, 2))}
    needed = {info.file for name, info in names.items() if not any(f".{i}." in name for i in (0, 2))}
    assert dropped - needed
    assert asked & set(shards) == needed


def test_all_arguments_pass_through(hub, deep, tmp_path):
    source, folder = deep
    files = {f"inner/{path.name}": path.read_bytes() for path in folder.iterdir()}
    repo = hub.add_repo(REPO, files, private=True)
    repo.branches["other"] = repo.branches["main"]
    settings = {"subfolder": "inner", "revision": "other", "cache_dir": tmp_path / "mine/hub", "token": READ_TOKEN}
    model = load(**settings, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.name_or_path == model.name_or_path == REPO
    assert model.config.hf_layerdrop["source"] == REPO
    assert model.config.hf_layerdrop["revision"] == "other"
    cut = cut_by_hand(source, {"encoder": KEPT}).to(torch.bfloat16)
    assert_same_tensors(model.state_dict(), cut.state_dict())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["hub"]
    assert list((tmp_path / "mine/hub").glob("models--*--hf_layerdrop--*/snapshots/*/model.safetensors"))
    assert not list((tmp_path / "home").glob("**/*hf_layerdrop*"))
    three, info = load(**settings, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True)
    assert three.classifier.weight.shape[0] == 3
    assert len(info["mismatched_keys"]) == 2


def test_the_generation_config_comes_along(hub, tmp_path):
    source = build("BartForConditionalGeneration")
    source.generation_config.max_length = 17
    source.save_pretrained(tmp_path / "bart")
    hub.add_folder(REPO, tmp_path / "bart")
    assert load({"encoder": 2}).generation_config.max_length == 17


def test_force_download_fetches_again(hub, deep):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load()
    first = hub.bytes_sent(WEIGHTS)
    check(load(force_download=True), source)
    assert hub.bytes_sent(WEIGHTS) == 2 * first


def test_a_whole_model_in_the_hubs_cache_is_used(hub, deep, kept_folders):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load_checkpoint(REPO)
    hub.requests.clear()
    check(load(), source)
    assert not hub.bytes_sent(WEIGHTS)
    assert not kept_folders()


def test_a_pickle_on_the_hub_is_refused(hub, deep, tmp_path):
    source, folder = deep
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    config = (folder / "config.json").read_bytes()
    hub.add_repo(REPO, {"config.json": config, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
    with pytest.raises(CheckpointError, match="use_safetensors=False"):
        load()
    check(load(use_safetensors=False), source)


# --- Servers --------------------------------------------------------------------------------------


def test_a_server_without_ranges_is_asked_for_the_whole_file_once(hub, deep, caplog):
    source, folder = deep
    hub.add_folder(REPO, folder)
    hub.ranges = "ignored"
    with caplog.at_level(logging.WARNING):
        check(load(), source)
    assert "no range requests" in caplog.text
    hub.requests.clear()
    check(load(), source)
    assert not hub.bytes_sent(WEIGHTS)


def test_of_shards_without_ranges_only_the_needed_ones_are_fetched(hub, tmp_path):
    source = build("BertForSequenceClassification")
    source.save_pretrained(tmp_path / "shards", max_shard_size="6KB")
    hub.add_folder(REPO, tmp_path / "shards")
    hub.ranges = "ignored"
    check(load(), source)
    fetched = {path.name for path in cached_weights(tmp_path / "home")}
    assert fetched < {path.name for path in (tmp_path / "shards").glob("*.safetensors")}


def test_a_server_that_sends_less_is_asked_for_the_rest(hub, deep):
    source, folder = deep
    hub.add_folder(REPO, folder)
    hub.ranges = "short"
    check(load(), source)


def test_connections_that_break_off_are_resumed(hub, deep):
    source, folder = deep
    hub.add_folder(REPO, folder)
    hub.cut(WEIGHTS, times=1)
    hub.cut(WEIGHTS, times=3, after_bytes=50_000, after="model.safetensors")
    check(load(), source)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in load().state_dict().values())
    assert hub.bytes_sent(WEIGHTS) < 1.05 * kept


def test_a_server_that_keeps_failing_leaves_nothing(hub, deep, kept_folders):
    source, folder = deep
    hub.add_folder(REPO, folder)
    hub.cut(WEIGHTS, times=100, after_bytes=0, after="model.safetensors")
    with pytest.raises(CheckpointError, match="could not be fetched") as error:
        load()
    assert "\n" not in str(error.value)
    assert not kept_folders()
    hub.faults.clear()
    check(load(), source)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_one_sentence(status, hub, deep, kept_folders):
    hub.add_folder(REPO, deep[1])
    hub.fail(WEIGHTS, status, times=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(CheckpointError, match=str(status)) as error:
            load()
    assert "\n" not in str(error.value)
    assert not kept_folders()


def test_an_endless_answer_is_not_read_past_the_part_that_was_asked_for(hub, deep):
    source, folder = deep
    hub.add_folder(REPO, folder)
    hub.ranges = "endless"
    check(load(), source)
    assert hub.bytes_sent(WEIGHTS) < 100e6


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_bids_to_wait_a_day_is_asked_again_soon(status, hub, deep, monkeypatch):
    source, folder = deep
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.add_folder(REPO, folder)
    hub.fail(WEIGHTS, status, times=3, body={"headers": {"Retry-After": "100000"}})
    check(load(), source)
    assert len(waits) == 2
    assert sum(waits) < 60


def test_compressed_answers_are_refused(hub, deep, kept_folders):
    hub.add_folder(REPO, deep[1])
    hub.ranges = "compressed"
    with pytest.raises(CheckpointError, match="another part"):
        load()
    assert not kept_folders()


def test_another_part_than_was_asked_for_is_refused(hub, deep, kept_folders):
    hub.add_folder(REPO, deep[1])
    hub.ranges = "shifted"
    with pytest.raises(CheckpointError, match="another part"):
        load()
    assert not kept_folders()


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_changes_between_requests_is_refused(longer, hub, deep, kept_folders, monkeypatch):
    repo = hub.add_folder(REPO, deep[1])
    files = repo.at("main").files
    read_header = http_ranges.RemoteFile.read_header

    def change_after_header(remote):
        header = read_header(remote)
        content = files["model.safetensors"]
        files["model.safetensors"] = content + b"\0" * 8 if longer else content[:-4] + b"\1\2\3\4"
        return header

    monkeypatch.setattr(http_ranges.RemoteFile, "read_header", change_after_header)
    with pytest.raises(CheckpointError, match="changed on the Hub"):
        load()
    assert not kept_folders()


def test_redirects_to_a_storage_are_followed_without_the_token(hub, deep):
    source, folder = deep
    hub.add_folder(REPO, folder)
    with HubServer() as storage:
        hub.storage = storage
        check(load(), source)
        assert storage.bytes_sent("stored") < 0.6 * (folder / "model.safetensors").stat().st_size
        assert all("authorization" not in request.headers for request in storage.requests)
        assert any("authorization" in request.headers for request in hub.requests)


# --- Damaged files --------------------------------------------------------------------------------


def with_header(folder, change):
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = json.dumps(change(header)).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def overlapping(header):
    names = [name for name in header if name != "__metadata__"]
    by_place = sorted(names, key=lambda name: header[name]["data_offsets"])
    header[by_place[1]]["data_offsets"] = header[by_place[0]]["data_offsets"]
    return header


def of_unknown_dtype(header):
    header["classifier.bias"]["dtype"] = "F31"
    return header


def without_a_layer(header):
    return {name: entry for name, entry in header.items() if "layer.5." not in name}


@pytest.mark.parametrize("change", [overlapping, of_unknown_dtype, without_a_layer])
def test_headers_that_lie_are_refused_before_their_tensors_are_fetched(change, hub, deep, kept_folders):
    files = {path.name: path.read_bytes() for path in deep[1].iterdir()}
    hub.add_repo(REPO, {**files, "model.safetensors": with_header(deep[1], change)})
    with pytest.raises(CheckpointError) as error:
        load()
    assert "\n" not in str(error.value)
    assert hub.bytes_sent(WEIGHTS) < 50_000
    assert not kept_folders()


@pytest.mark.parametrize("length", [2**40, 10**6 * 100, 1])
def test_lengths_that_lie_are_refused(length, hub, deep, kept_folders):
    files = {path.name: path.read_bytes() for path in deep[1].iterdir()}
    weights = length.to_bytes(8, "little") + files["model.safetensors"][8:]
    hub.add_repo(REPO, {**files, "model.safetensors": weights})
    with pytest.raises(CheckpointError, match="corrupt"):
        load()
    assert hub.bytes_sent(WEIGHTS) < 50_000
    assert not kept_folders()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "missing.safetensors"])
def test_an_index_on_the_hub_names_only_files_of_its_repository(shard, hub, deep, tmp_path, kept_folders):
    source, folder = deep
    names = list(source.state_dict())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    config = (folder / "config.json").read_bytes()
    hub.add_repo(REPO, {"config.json": config, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(CheckpointError) as error:
        load()
    assert "\n" not in str(error.value)
    assert not kept_folders()
    assert not [request for request in hub.requests if "outside" in request.path or "passwd" in request.path]


def test_a_tensor_that_its_shard_lacks_is_refused(hub, tmp_path, kept_folders):
    build("BertForSequenceClassification").save_pretrained(tmp_path / "shards", max_shard_size="6KB")
    index = tmp_path / "shards/model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    moved = {name: shards[shards.index(shard) - 1] for name, shard in content["weight_map"].items()}
    index.write_text(json.dumps({**content, "weight_map": moved}))
    hub.add_folder(REPO, tmp_path / "shards")
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        load()
    assert not kept_folders()


def test_what_was_kept_and_then_damaged_is_not_used_even_if_the_hub_is_gone(hub, deep, tmp_path, kept_folders):
    hub.add_folder(REPO, deep[1])
    load()
    weights = kept_folders()[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    hub.fail(WEIGHTS, 404, times=100)
    with pytest.raises(CheckpointError, match="404"):
        load()
    assert not kept_folders()
    found = scan_cache_dir(tmp_path / "home/hub")
    assert not found.warnings
    assert {repo.repo_id for repo in found.repos} == {REPO}


def test_what_was_kept_and_then_damaged_is_fetched_again(hub, deep, kept_folders):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load()
    weights = kept_folders()[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    check(load(), source)


def test_a_process_that_was_faster_wins(hub, deep, kept_folders, monkeypatch):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load()
    (first,) = kept_folders()
    before = load_file(first / "model.safetensors")
    shutil.copytree(first, first.with_name("copy"))
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_is_whole", lambda folder: False)
        patch.setattr(downloads.shutil, "rmtree", lambda folder, **_: None)
        check(load(), source)
    assert load_file(first / "model.safetensors").keys() == before.keys()


# --- In the Hub's cache ---------------------------------------------------------------------------


def test_the_hubs_tools_list_what_is_kept_and_delete_it_alone(hub, deep, tmp_path, kept_folders):
    source, folder = deep
    commit = hub.add_folder(REPO, folder).branches["main"]
    load()
    load([0, 5])
    found = scan_cache_dir(tmp_path / "home/hub")
    assert not found.warnings
    repos = {repo.repo_id: repo for repo in found.repos}
    assert repos.keys() == {REPO, f"{REPO}/hf_layerdrop/layers"}
    own, whole = repos[f"{REPO}/hf_layerdrop/layers"], repos[REPO]
    assert {revision.commit_hash for revision in whole.revisions} == {commit}
    assert commit not in {revision.commit_hash for revision in own.revisions}
    assert own.size_on_disk == sum(path.stat().st_size for one in kept_folders() for path in one.iterdir())
    assert all(revision.refs for revision in own.revisions)  # else `hf cache prune` takes it for a leftover
    first, second = sorted(own.revisions, key=lambda revision: revision.commit_hash)
    found.delete_revisions(first.commit_hash).execute()
    assert kept_folders() == [second.snapshot_path]
    scan_cache_dir(tmp_path / "home/hub").delete_revisions(second.commit_hash).execute()
    again = scan_cache_dir(tmp_path / "home/hub")
    assert not again.warnings
    assert {repo.repo_id for repo in again.repos} == {REPO}
    check(load(), source)


def test_what_is_kept_is_never_taken_for_the_whole_model(hub, deep, monkeypatch):
    hub.add_folder(REPO, deep[1])
    load()
    for name in (REPO, f"{REPO}/hf_layerdrop/layers"):
        with pytest.raises(OSError, match=r"does not appear to have a file|Repo id must be"):
            BertForSequenceClassification.from_pretrained(name, local_files_only=True)


def test_while_it_is_fetched_the_hubs_tools_see_nothing_of_it(hub, deep, tmp_path, monkeypatch):
    hub.add_folder(REPO, deep[1])
    write, seen = downloads._write_weights, []

    def scanned(path, *args):
        write(path, *args)
        seen.append(scan_cache_dir(tmp_path / "home/hub"))

    monkeypatch.setattr(downloads, "_write_weights", scanned)
    load()
    assert not seen[0].warnings
    assert not [repo for repo in seen[0].repos if "hf_layerdrop" in repo.repo_id and repo.revisions]


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_file_that_a_tool_deleted_is_fetched_again(lost, hub, deep, kept_folders):
    source, folder = deep
    hub.add_folder(REPO, folder)
    load()
    (kept_folders()[0] / lost).unlink()
    check(load(), source)


def test_a_name_without_owner_has_a_folder_that_no_repository_can_have(hub, deep, tmp_path):
    hub.add_folder("deep", deep[1])
    load_checkpoint("deep", keep_layers=KEPT)
    found = scan_cache_dir(tmp_path / "home/hub")
    assert not found.warnings
    assert {repo.repo_id for repo in found.repos} == {"deep", "deep/hf_layerdrop/layers"}
