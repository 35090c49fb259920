"""Files that nobody thought of: taken, or refused in one sentence; soon, and with nothing written."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifiers import save_classifier
from hf_layerdrop.checkpoints.headers import read_checkpoint, read_header
from hf_layerdrop.cli import run
from hf_layerdrop.cli.recipe import StepJournal
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.models.auto import load_checkpoint
from hf_layerdrop.results.table import read_results, render_table
from hf_layerdrop.samplers.keep_layers import choice_behind, parse_keep_layers
from hf_layerdrop.search.journal import ScoreJournal
from strangers import SCALE, VALUES, listing, soon, taken_or_refused

INDEX = "model.safetensors.index.json"
LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=8) | st.sampled_from(VALUES)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def tries(examples):
    """The same tries every time, and more of them where they are asked for."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples * SCALE, derandomize=True, deadline=None, database=None, suppress_health_check=health
    )


@st.composite
def changed(draw, value):
    """Change a value of JSON at some places: another value, none, one more, a key of another name."""
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_changed(value, 4))
    return value


@st.composite
def _changed(draw, value, depth):
    if depth and value and isinstance(value, dict | list) and draw(st.integers(0, 5)):
        place = draw(st.sampled_from(sorted(value)) if isinstance(value, dict) else st.integers(0, len(value) - 1))
        copy = dict(value) if isinstance(value, dict) else list(value)
        how = draw(st.sampled_from(["change", "change", "change", "drop", "rename"]))
        if how == "change":
            copy[place] = draw(_changed(copy[place], depth - 1))
        elif how == "drop":
            del copy[place]
        elif isinstance(copy, dict):
            copy[draw(st.text(max_size=8))] = copy.pop(place)
        else:
            copy.append(draw(JSON))
        return copy
    return draw(JSON)


def damaged(text):
    """Bytes as they are, cut off, or with a few others in between."""
    raw = text.encode("utf-8", "surrogatepass")
    ends = st.integers(0, len(raw))
    return (
        st.just(raw)
        | st.just(raw)
        | ends.map(lambda end: raw[:end])
        | st.tuples(ends, st.binary(max_size=4)).map(lambda cut: raw[: cut[0]] + cut[1] + raw[cut[0] :])
    )


def check(folder, door):
    """Let a function work, or refuse in one line; and leave the folder as it is."""
    before = listing(folder)
    found = taken_or_refused(door)
    assert listing(folder) == before
    return found


def commands(capsys, *words):
    capsys.readouterr()
    code = run([str(word) for word in words])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert (code, len(said)) in ((0, 0), (2, 1)), (code, said)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    model = save_classifier(place / "whole")
    shutil.copytree(model, place / "shards")
    (place / "shards" / "model.safetensors").unlink()
    load_checkpoint(model).save_pretrained(place / "shards", max_shard_size="6KB")
    return place


@contextmanager
def instead(path, content):
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(good)


@tries(12)
@given(data=st.data())
def test_configs(saved, capsys, data):
    path = saved / "whole" / "config.json"
    config = data.draw(changed(json.loads(path.read_text())))
    with instead(path, data.draw(damaged(json.dumps(config)))):
        check(saved, lambda: commands(capsys, "inspect", saved / "whole"))
        check(saved, lambda: load_checkpoint(saved / "whole", keep_layers=2))


@tries(12)
@given(data=st.data())
def test_indices(saved, capsys, data):
    path = saved / "shards" / INDEX
    content = data.draw(changed(json.loads(path.read_text())))
    with instead(path, data.draw(damaged(json.dumps(content)))):
        check(saved, lambda: commands(capsys, "inspect", saved / "shards"))
        check(saved, lambda: load_checkpoint(saved / "shards", keep_layers=2))


@tries(30)
@given(data=st.data())
def test_headers(saved, data):
    path = saved / "whole" / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = data.draw(damaged(json.dumps(data.draw(changed(json.loads(content[8 : 8 + length]))))))
    size = data.draw(st.just(len(header)) | st.just(len(header)) | st.integers(0, 2**64 - 1))
    with instead(path, size.to_bytes(8, "little") + header + content[8 + length :]):
        check(saved, lambda: read_header(path))
        check(saved, lambda: read_checkpoint(saved / "whole"))


SELECTION = {
    "keep_layers": {"encoder": [0, 2]},
    "strategy": "beam",
    "metric": "f1",
    "score": 0.5,
    "depths": {"encoder": 4},
}


@tries(60)
@given(data=st.data())
def test_selections(tmp_path, data):
    file = tmp_path / "chosen.json"
    file.write_bytes(data.draw(damaged(json.dumps(data.draw(changed(SELECTION))))))
    kept = check(tmp_path, lambda: parse_keep_layers(file, {"encoder": 4}))
    assert kept is None or all(0 <= layer < 4 for layer in kept["encoder"])
    assert set(check(tmp_path, lambda: choice_behind(file)) or ()) <= {"strategy", "metric", "score"}


RESULT = {
    "keep_layers": {"encoder": [0, 2]},
    "parameters": 10,
    "metrics": {"f1": 0.5},
    "seconds_per_batch": 0.1,
    "layer_forwards": 2,
}


@tries(30)
@given(data=st.data())
def test_journals(tmp_path, data):
    kinds = [
        {"version": 1, "fingerprint": "x", **RESULT},
        {"version": 1, "place": 0, "words": ["prune"], "state": "done"},
    ]
    lines = [data.draw(damaged(json.dumps(data.draw(changed(record))))) for record in kinds * 2]
    file = tmp_path / "journal"
    for read in (lambda: ScoreJournal(file, "x"), lambda: StepJournal(file).states([["prune"], ["push"]])):
        for content in (lines[::2], lines[1::2]):
            file.write_bytes(b"".join(line + b"\n" for line in content))
            check(tmp_path, read)


@tries(30)
@given(data=st.data())
def test_results(tmp_path, data):
    file = tmp_path / "depth_results.json"
    file.write_bytes(data.draw(damaged(json.dumps(data.draw(changed([RESULT, RESULT]))))))
    check(tmp_path, lambda: render_table(read_results(file)))


RECIPE = {"steps": ["prune a --keep-layers 2", {"train": {"task": "sst2", "layerdrop": 0.2, "seed": [1, 2]}}]}


@tries(30)
@given(data=st.data())
def test_recipes(tmp_path, capsys, data):
    file = tmp_path / "recipe.yaml"
    content = data.draw(changed(RECIPE))
    write = data.draw(st.sampled_from([json.dumps, yaml.safe_dump]))
    file.write_bytes(data.draw(damaged(write(content))))
    check(tmp_path, lambda: commands(capsys, "run", file, "--dry-run"))


@tries(200)
@given(st.text(max_size=40) | st.text("0123456789,:;=.+- fistarlyo\u00b2\u0663", max_size=30))
def test_texts_of_keep_layers(text):
    for depths in ({"encoder": 4}, {"encoder": 4, "decoder": 3}):
        kept = taken_or_refused(lambda: parse_keep_layers(text, depths))  # noqa: B023
        assert kept is None or all(list(layers) == sorted(set(layers)) for layers in kept.values())


@pytest.mark.parametrize(
    "text",
    [
        "1" + " " * 40_000 + "x",
        "1," * 40_000,
        "," * 10**6,
        ":" * 10**6,
        "a=" * 10**6,
        "1" * 10**6,
        "every_other:" + "9" * 10**6,
    ],
)
def test_long_texts_of_keep_layers_are_refused_at_once(text):
    with soon(), pytest.raises(LayerDropError):
        parse_keep_layers(text, {"encoder": 4})
