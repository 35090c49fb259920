"""Of whatever is wrong on the Hub, `prune` and ``from_pretrained`` say one sentence, and keep nothing of it."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from safetensors.torch import load_file

from conftest import assert_same_tensors, build, cut_by_hand
from damages import (
    HEADERS,
    WEIGHT,
    WRONG_SHARDS,
    change_config,
    name_a_foreign_shard_of_other_shapes,
    placed,
    write_index,
)
from hf_layerdrop import load_checkpoint
from hf_layerdrop.checkpoints import http_ranges
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError
from hub_server import HubServer

REPO = "alice/deep"
KEPT = [1, 3]
WEIGHTS = r"resolve/.*\.safetensors$"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(http_ranges, "_SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of huggingface_hub between its own attempts
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture(scope="module")
def source():
    return build("BertForSequenceClassification")


@pytest.fixture
def folder(source, tmp_path):
    """A checkpoint in shards in one folder, in one file in the other."""
    source.save_pretrained(tmp_path / "in/shards", max_shard_size="6KB")
    source.save_pretrained(tmp_path / "in/whole")
    return tmp_path / "in"


def prune(tmp_path):
    return run(["prune", REPO, "--keep-layers", "1,3", "--output", str(tmp_path / "out"), "--no-tokenizer"])


def kept_by_us(tmp_path):
    """What stands in our own folder, half-written things included."""
    return [
        path for path in (tmp_path / "home/hub").glob("models--*--hf_layerdrop--*/snapshots/**/*") if path.is_file()
    ]


def refused_both_ways(tmp_path, capsys, said, *, faithful=None):
    """Check that the model is refused by both, and that neither leaves anything behind.

    Except where what the Hub has is whole, and only does not fit its config: of that a copy may stay, which holds the
    ``faithful`` tensors.
    """
    capsys.readouterr()
    code = prune(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert code == 2, lines
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    with pytest.raises(LayerDropError) as error:
        load_checkpoint(REPO, keep_layers=KEPT)
    assert "\n" not in str(error.value)
    assert re.search(said, str(error.value)), error.value
    assert not list(tmp_path.glob("*out*"))
    kept = kept_by_us(tmp_path)
    if faithful is None:
        assert not kept
        return
    assert sorted(path.name for path in kept) == ["config.json", "model.safetensors"]
    copied = load_file(next(path for path in kept if path.suffix == ".safetensors"))
    assert_same_tensors(
        {name: copied[name] for name in sorted(copied)}, {name: faithful[name] for name in sorted(faithful)}
    )


def served_both_ways(tmp_path, source):
    """Check that both come to the right tensors, and to the same."""
    assert_same_tensors(
        load_checkpoint(REPO, keep_layers=KEPT).state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict()
    )
    assert prune(tmp_path) == 0
    assert_same_tensors(
        type(source).from_pretrained(tmp_path / "out").state_dict(), cut_by_hand(source, {"encoder": KEPT}).state_dict()
    )


# --- What lies there is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("of", ["whole", "shards"])
def test_headers_that_lie_are_refused(of, case, hub, folder, tmp_path, capsys):
    damage, said = HEADERS[case]
    path = folder / of / (placed(folder / of)[WEIGHT] if of == "shards" else "model.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    hub.add_folder(REPO, folder / of)
    refused_both_ways(tmp_path, capsys, said)


@pytest.mark.parametrize(("damage", "said"), WRONG_SHARDS, ids=[damage.__name__ for damage, _ in WRONG_SHARDS])
def test_shards_that_do_not_fit_are_refused(damage, said, hub, source, folder, tmp_path, capsys):
    damage(folder / "shards")
    hub.add_folder(REPO, folder / "shards")
    # of a folder a missing file is one that cannot be read, of the Hub one that it does not have
    said = re.sub("weight file .*cannot be read: .*", "lacks the weight file", said)
    said = re.sub("(.*) ?cannot be read: .*", r"lacks the weight file '\1", said)
    said = re.sub("hold 3 layers.*", "hold 3 layers .*(missing|without):? 2", said)
    faithful = None
    if damage is name_a_foreign_shard_of_other_shapes:
        cut = cut_by_hand(source, {"encoder": KEPT}).state_dict()
        faithful = {**cut, WEIGHT.replace("layer.1", "layer.0"): torch.ones(16, 24)}
    refused_both_ways(tmp_path, capsys, said, faithful=faithful)


@pytest.mark.parametrize(
    "shard", ["../other/resolve/main/model.safetensors", "/etc/passwd", "..", "a\0b", "", "http://127.0.0.1/x", 3, None]
)
def test_names_in_an_index_stay_in_the_repository(shard, hub, folder, tmp_path, capsys):
    hub.add_folder("alice/other", folder / "whole")
    write_index(folder / "shards", {**placed(folder / "shards"), WEIGHT: shard})
    hub.add_folder(REPO, folder / "shards")
    refused_both_ways(
        tmp_path, capsys, "names the weight file .*, which is not inside the folder|lacks the weight file"
    )
    assert not [request for request in hub.requests if "other" in request.path or "passwd" in request.path]


@pytest.mark.parametrize("depth", [3, 5, 0, "4", 4.0, None])
def test_a_config_of_another_depth_is_refused(depth, hub, folder, tmp_path, capsys):
    change_config(folder / "whole", num_hidden_layers=depth)
    hub.add_folder(REPO, folder / "whole")
    refused_both_ways(tmp_path, capsys, f"num_hidden_layers.*{depth}|no stack|has {depth} layers|'1,3'|names")


def test_a_pickle_is_refused_and_not_fetched(hub, folder, tmp_path, capsys):
    weights = folder / "whole/model.safetensors"
    torch.save(load_file(weights), folder / "whole/pytorch_model.bin")
    weights.unlink()
    hub.add_folder(REPO, folder / "whole")
    refused_both_ways(tmp_path, capsys, "use_safetensors=False in Python or --allow-pickle")
    assert not [request for request in hub.requests if ".bin" in request.path]


# --- The server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["whole", "shards"])
@pytest.mark.parametrize("ranges", ["ignored", "short"])
def test_servers_that_know_no_ranges_or_send_too_little_serve_all_the_same(ranges, of, hub, source, folder, tmp_path):
    hub.add_folder(REPO, folder / of)
    hub.ranges = ranges
    served_both_ways(tmp_path, source)


@pytest.mark.parametrize("of", ["whole", "shards"])
def test_redirects_are_followed_and_the_token_is_not_handed_on(of, hub, source, folder, tmp_path):
    hub.add_folder(REPO, folder / of)
    with HubServer() as storage:
        hub.storage = storage
        served_both_ways(tmp_path, source)
        assert storage.requests
        assert all("authorization" not in request.headers for request in storage.requests)


def test_a_redirect_to_nowhere_is_refused(hub, folder, tmp_path, capsys):
    hub.add_folder(REPO, folder / "whole")
    with HubServer() as gone:
        hub.storage = gone
    refused_both_ways(tmp_path, capsys, "could not be")


def test_another_part_than_was_asked_for_is_refused(hub, folder, tmp_path, capsys):
    hub.add_folder(REPO, folder / "whole")
    hub.ranges = "shifted"
    refused_both_ways(tmp_path, capsys, "another part of")


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_fails_is_named(status, hub, folder, tmp_path, capsys):
    hub.add_folder(REPO, folder / "whole")
    hub.fail(WEIGHTS, status, times=1000)
    refused_both_ways(tmp_path, capsys, f"{status}")


def test_connections_that_break_off_are_resumed(hub, source, folder, tmp_path):
    hub.add_folder(REPO, folder / "whole")
    hub.cut(WEIGHTS, times=4, after_bytes=5_000)
    served_both_ways(tmp_path, source)


def test_connections_that_bring_nothing_are_given_up(hub, folder, tmp_path, capsys):
    hub.add_folder(REPO, folder / "whole")
    hub.cut(WEIGHTS, times=1000, after_bytes=0)
    refused_both_ways(tmp_path, capsys, "could not be fetched")


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("moment", ["within the header", "within the weights"])
def test_a_file_that_changes_while_it_is_read_is_refused(moment, longer, hub, folder, tmp_path, capsys, monkeypatch):
    repo = hub.add_folder(REPO, folder / "whole")
    files = repo.at("main").files
    good, changed = files["model.safetensors"], itertools.count(1)
    stream = http_ranges.RemoteFile.stream

    def changing(remote, begin, end):
        """Change the file before a request that is not the first one of its file."""
        if begin == 8 if moment == "within the header" else begin > 8:
            files["model.safetensors"] = good[:-4] + next(changed).to_bytes(4, "big") + b"\0" * 8 * longer
        yield from stream(remote, begin, end)

    monkeypatch.setattr(http_ranges.RemoteFile, "stream", changing)
    if moment == "within the header":
        refused_both_ways(tmp_path, capsys, "changed on the Hub while it was fetched")
        return
    files["model.safetensors"] = good
    with pytest.raises(LayerDropError, match="changed on the Hub while it was fetched"):
        load_checkpoint(REPO, keep_layers=KEPT)
    files["model.safetensors"] = good
    assert prune(tmp_path) == 2
    assert "changed on the Hub while it was fetched" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))
    assert not kept_by_us(tmp_path)
