"""Whatever stands in layerdrop.json: refused in one sentence by who asks for it, and of no harm to anybody else."""

from __future__ import annotations

import json
import random

import pytest
from test_doors import ANYTHING

from classifiers import save_classifier
from hf_layerdrop import LayerDropError, load_checkpoint, read_recommended
from hf_layerdrop.checkpoints.recommended_file import RECOMMENDED_FILE
from strangers import SCALE, VALUES, answer, listing, refused, soon, taken_or_refused
from tables import table_for

GOOD = table_for().model_dump(mode="json")
ONE = GOOD["sets"][0]
ESCAPE = "\x1b[2J\x1b]0;x\x07"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model") / "sst2")


@pytest.fixture
def file(model):
    path = model / RECOMMENDED_FILE
    yield path
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def changed(**entries):
    return json.dumps({**GOOD, **entries})


def with_set(**entries):
    return changed(sets=[{**ONE, **entries}])


BAD = {
    "a later version": (changed(version=2), "of version 2"),
    "a version of words": (changed(version="1"), "version"),
    "no version of this world": (changed(version=10**30), "of version 1000"),
    "unknown entries": (changed(more=1), "more"),
    "unknown entries of a set": (with_set(more=1), "more"),
    "no sets": (changed(sets=[]), "sets"),
    "too many sets": (changed(sets=[ONE] * 1001), "sets"),
    "a set twice": (changed(sets=[ONE, ONE]), "listed twice"),
    "a depth of none": (changed(depths={"encoder": 0}), "depths"),
    "a depth of true": (changed(depths={"encoder": True}), "depths"),
    "a set of another stack": (with_set(keep_layers={"decoder": [0]}), "decoder"),
    "a layer that is not there": (with_set(keep_layers={"encoder": [0, 4]}), "4 layers"),
    "a layer below none": (with_set(keep_layers={"encoder": [-1]}), "keep_layers"),
    "a layer twice": (with_set(keep_layers={"encoder": [1, 1]}), "at most once"),
    "layers in another order": (with_set(keep_layers={"encoder": [2, 1]}), "in order"),
    "a layer of words": (with_set(keep_layers={"encoder": ["0"]}), "keep_layers"),
    "half a layer": (with_set(keep_layers={"encoder": [0.5]}), "keep_layers"),
    "no layers": (with_set(keep_layers={"encoder": []}), "keep_layers"),
    "a score of words": (with_set(metrics={"accuracy": "0.9"}), "metrics"),
    "a score of true": (with_set(metrics={"accuracy": True}), "metrics"),
    "NaN": (with_set(metrics={"accuracy": float("nan")}), "NaN"),
    "infinity": (with_set(seconds_per_batch=float("inf")), "Infinity"),
    "a number beyond all": (with_set(metrics={"accuracy": 0.5}).replace("0.5", "1e999"), "finite"),
    "a time before it began": (with_set(seconds_per_batch=-1.0), "seconds_per_batch"),
    "an escape as a machine": (with_set(machine=ESCAPE), "not shown"),
    "an escape as a metric": (changed(metric=ESCAPE), "not shown"),
    "an escape as an entry": (changed(**{ESCAPE: 1}), "x1b"),
    "a direction of writing": (with_set(chosen_by="beam\u202e"), "not shown"),
    "a name without end": (with_set(chosen_by="x" * 201), "chosen_by"),
    "two values of one name": ('{"version": 1, "version": 1}', "'version' twice"),
    "half a pair": (changed(metric="\ud800"), ""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_table_that_is_none(what, model, file, tmp_path, capsys):
    content, said = BAD[what]
    file.write_text(content)
    before = listing(model)
    error = refused(capsys, "prune", model, "--keep-layers", "best:2", "--output", tmp_path / "out")
    assert said in error
    assert RECOMMENDED_FILE in error
    assert error.isprintable()
    for spec in ("best:2", "fastest:0.9"):
        with soon(), pytest.raises(LayerDropError, match="layerdrop"):
            load_checkpoint(model, keep_layers=spec)
    assert (listing(model), listing(tmp_path)) == (before, set())
    assert answer(capsys, "inspect", model) == 0
    assert answer(capsys, "prune", model, "--keep-layers", "2", "--output", tmp_path / "out") == 0
    assert not (tmp_path / "out" / RECOMMENDED_FILE).exists()


@pytest.mark.parametrize("what", ANYTHING)
def test_whatever_is_in_the_place_of_the_file(what, model, file, capsys, tmp_path):
    ANYTHING[what](file)
    with soon(), pytest.raises(LayerDropError) as caught:
        read_recommended(model)
    assert "\n" not in str(caught.value)
    assert answer(capsys, "inspect", model) == 0
    assert answer(capsys, "prune", model, "--keep-layers", "2", "--output", tmp_path / "out") == 0


def damaged(value, rng):
    """Put something else into one place of a table."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        return {**value, name: damaged(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [damaged(one, rng) if at == place else one for at, one in enumerate(value)]
    return rng.choice(VALUES)


def test_tables_with_anything_anywhere(model, file):
    rng = random.Random(0)
    for _ in range(300 * SCALE):
        file.write_text(json.dumps(damaged(GOOD, rng)), encoding="utf-8")
        for spec in ("best:2", "fastest:0.9"):
            table = taken_or_refused(lambda: read_recommended(model))
            if table is not None:
                taken_or_refused(lambda spec=spec, table=table: table.best({"encoder": 2}) and table.fastest(0.9))


def test_notes_of_files_are_no_way_in(model, file, tmp_path, capsys):
    """What a downloaded folder says of local files is at most a name that is no data file."""
    file.write_text(changed(measured_with={"task": "sst2", "dataset": "local-sst2"}))
    notes = model / ".cache" / "huggingface" / "layerdrop_files.json"
    notes.parent.mkdir(parents=True, exist_ok=True)
    for content in ("[", "[1]", '{"validation_file": 3}', '{"validation_file": ["/dev/zero"]}', '{"dataset": "../x"}'):
        notes.write_text(content)
        refused(capsys, "sweep", model, "--output", tmp_path / "out")
