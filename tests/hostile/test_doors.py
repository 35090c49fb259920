"""Whatever stands in the place of a file: refused at once, in one sentence that names it, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop.checkpoints.journal import Journal
from hf_layerdrop.errors import KeepLayersError, LayerDropConfigError, LayerDropError
from hf_layerdrop.models.auto import load_checkpoint
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import choice_behind, parse_keep_layers
from hf_layerdrop.search.journal import ScoreJournal
from strangers import NESTED, answer, listing, refused, soon, taken_or_refused

INDEX = "model.safetensors.index.json"


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path.name)


def huge(path):
    path.touch()
    os.truncate(path, 10**12)


def text(content):
    def write(path):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


KINDS = {"pipe": pipe, "endless": endless, "folder": folder, "loop": loop, "huge": huge}
TEXTS = {
    "nothing": text(""),
    "nested": text(NESTED),
    "a page": text("<!doctype html><html><body>Log in</body></html>"),
    "no UTF-8": text(b'{"a": "\xff"}'),
    "a list": text("[1, 2]"),
    "a number": text("3"),
    "null": text("null"),
    "a long number": text("9" * 5000),
}
ANYTHING = {**KINDS, **TEXTS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved")
    model = save_classifier(place / "whole")
    loaded = load_checkpoint(model)
    shutil.copytree(model, place / "shards")
    (place / "shards" / "model.safetensors").unlink()
    loaded.save_pretrained(place / "shards", max_shard_size="6KB")
    return place


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved / "whole", tmp_path / "model")


@pytest.fixture
def shards(saved, tmp_path):
    return shutil.copytree(saved / "shards", tmp_path / "model")


def refused_by_all(folder, name, tmp_path, capsys):
    """Check that a checkpoint is refused by commands and by loading, whole and cut; ``name`` is the file to blame."""
    before = listing(tmp_path)
    words = [["inspect", folder], ["prune", folder, "--keep-layers", "2", "--output", tmp_path / "out"]]
    if name == "model.safetensors":  # what all commands begin with
        words += [["sweep", folder, "--task", "sst2", "--output", tmp_path / "out"]]
        words += [["push", folder, "--keep-layers", "2", "--repo-id", "a/b"]]
    for command in words:
        assert name in refused(capsys, *command)
    for keep_layers in (None, 2):
        with soon(), pytest.raises(LayerDropError) as caught:
            load_checkpoint(folder, keep_layers=keep_layers)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert listing(tmp_path) == before


# --- Files of a checkpoint ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_checkpoint(name, what, model, tmp_path, capsys):
    (model / name).unlink()
    ANYTHING[what](model / name)
    refused_by_all(model, str(model) if what == "loop" else name, tmp_path, capsys)


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("name", [INDEX, "model-00002-of-"])
def test_an_index_and_a_shard(name, what, shards, tmp_path, capsys):
    path = next(shards.glob(f"{name}*"))
    path.unlink()
    ANYTHING[what](path)
    refused_by_all(shards, str(shards) if what == "loop" else path.name, tmp_path, capsys)


@pytest.mark.parametrize(
    "change", [{"metadata": None}, {"metadata": [1]}, {"weight_map": [1]}, {"weight_map": {"a": {}}}]
)
def test_an_index_of_another_form(change, shards, tmp_path, capsys):
    """Without metadata it says where the weights are, but transformers does not read it."""
    content = json.loads((shards / INDEX).read_text()) | change
    (shards / INDEX).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    if "metadata" in change:
        assert answer(capsys, "inspect", shards) == 0
    before = listing(tmp_path)
    words = ["prune", shards, "--keep-layers", "2", "--output", tmp_path / "out"]
    assert INDEX in refused(capsys, *words)
    for keep_layers in (None, 2):
        with pytest.raises(LayerDropError, match=INDEX):
            load_checkpoint(shards, keep_layers=keep_layers)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("what", ["pipe", "endless", "huge", "nested", "a page", "a list", "no UTF-8"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_beside_the_weights(name, what, model, rows, tmp_path, capsys):
    """Such files may be damaged and unused; what uses them says so, and nobody waits."""
    (model / name).unlink(missing_ok=True)
    ANYTHING[what](model / name)
    before = listing(tmp_path)
    taken_or_refused(lambda: load_checkpoint(model, keep_layers=2))
    if name != "generation_config.json" and what not in ("pipe", "endless"):  # those are as good as not there
        words = ["sweep", model, "--task", "sst2", "--validation-file", rows, "--output", tmp_path / "out"]
        assert str(model) in refused(capsys, *words)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("what", ANYTHING)
def test_the_config_of_an_adapter(what, model, tmp_path, capsys):
    ANYTHING[what](model / "adapter_config.json")
    if what == "loop":
        return
    refused_by_all(model, "adapter_config.json", tmp_path, capsys)


@pytest.mark.parametrize(
    "base", ["SELF", "../model", "a\0b", "x" * 5000, "/dev/zero", 3, ["x"], "", "\ud800", "a b", "."]
)
def test_the_base_of_an_adapter(base, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(model)
    base = str(model) if base == "SELF" else base
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    refused_by_all(model, "", tmp_path, capsys)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "\udcff", "/dev/zero", "²", "a//b", "", " ", "a" * 97])
def test_the_name_of_a_checkpoint(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused_by_all(name, "", tmp_path, capsys)


def test_a_name_with_a_null_is_refused_from_python():
    for keep_layers in (None, 2):
        with pytest.raises(LayerDropError):
            load_checkpoint("a\0b", keep_layers=keep_layers)


@pytest.mark.parametrize("number", ["999999999999999999", "\u00b2", "9" * 400, "-1", "0x1", "1e3", "\u0663", "01"])
def test_the_number_of_a_layer(number, model, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    renamed = {name.replace("layer.3.", f"layer.{number}."): weight for name, weight in weights.items()}
    save_file(renamed, model / "model.safetensors", {"format": "pt"})
    refused_by_all(model, "", tmp_path, capsys)


def test_names_that_are_no_utf8_are_shown(model, tmp_path, capsys):
    place = tmp_path / os.fsdecode(b"model-\xff\xfe")
    model.rename(place)
    (place / os.fsdecode(b"\xff.json")).write_text("{}")
    assert answer(capsys, "inspect", place) == 0
    answer(capsys, "prune", place, "--keep-layers", "2", "--output", tmp_path / "out")  # safetensors opens none
    (place / "config.json").unlink()
    assert "model-" in refused(capsys, "inspect", place)


def test_outputs_may_have_names_that_are_no_utf8(model, tmp_path, capsys):
    output = tmp_path / os.fsdecode(b"out-\xff")
    assert answer(capsys, "prune", model, "--keep-layers", "2", "--output", output) == 0
    assert (output / "README.md").is_file()


# --- Selections, results, recipes, options --------------------------------------------------------


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("command", ["prune", "push"])
def test_a_selection(command, what, model, tmp_path, capsys):
    file = tmp_path / "chosen.json"
    ANYTHING[what](file)
    where = ["--output", tmp_path / "out"] if command == "prune" else ["--repo-id", "a/b"]
    before = listing(tmp_path)
    assert "chosen.json" in refused(capsys, command, model, "--keep-layers", file, *where)
    with soon(), pytest.raises(KeepLayersError, match=r"chosen\.json"):
        parse_keep_layers(file, {"encoder": 4})
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "entry",
    [
        {"score": "NaN"},
        {"score": "Infinity"},
        {"score": "1e999"},
        {"score": '"good"'},
        {"strategy": "[1]"},
        {"metric": "{}"},
        {"score": "true"},
    ],
)
def test_what_a_selection_says_of_itself(entry, model, tmp_path, capsys):
    ((name, value),) = entry.items()
    (tmp_path / "chosen.json").write_text(f'{{"keep_layers": [0, 2], "{name}": {value}}}')
    before = listing(tmp_path)
    words = ["prune", model, "--keep-layers", tmp_path / "chosen.json", "--output", tmp_path / "out"]
    assert f"{name} = " in refused(capsys, *words)
    with pytest.raises(KeepLayersError, match=f"{name} = "):
        choice_behind(tmp_path / "chosen.json")
    assert listing(tmp_path) == before


RESULT = {
    "keep_layers": {"encoder": [0, 2]},
    "parameters": 10,
    "metrics": {"f1": 0.5},
    "seconds_per_batch": None,
    "layer_forwards": 2,
}
WRONG_RESULTS = [
    *({"parameters": value} for value in ("x", None, -1, 1.5, [], True)),
    *({"metrics": value} for value in ({"f1": "x"}, [], None, {"f1": {}}, {"f1": [1]}, {"f1": True})),
    *(
        {"keep_layers": value}
        for value in (
            [0],
            {"encoder": 3},
            {"encoder": ["x"]},
            {"encoder": [[0]]},
            {"encoder": [-1]},
            {"encoder": [2, 0]},
        )
    ),
    *({"seconds_per_batch": value} for value in ("x", [], {})),
    *({"layer_forwards": value} for value in ("x", None, 1.5)),
    {"more": 1},
]


@pytest.mark.parametrize("what", [*ANYTHING, *WRONG_RESULTS], ids=str)
def test_results(what, model, tmp_path, capsys):
    file = model / "depth_results.json"  # found without being asked for
    if isinstance(what, dict):
        file.write_text(json.dumps([RESULT | what]))
    else:
        ANYTHING[what](file)
    before = listing(tmp_path)
    words = ["prune", model, "--keep-layers", "2", "--output", tmp_path / "out"]
    if what not in ("pipe", "endless", "folder", "loop"):  # nobody asked for those, which are no file of results
        assert file.name in refused(capsys, *words)
    assert file.name in refused(capsys, *words, "--results", file)
    assert listing(tmp_path) == before


RECIPES = {
    "an open quote": '- "prune \'a --keep-layers 2"',
    "a list of options": "- prune: [1, 2]",
    "options in options": "- prune: {model: {a: b}}",
    "a text of options": "- prune: x",
    "an impossible date": "- prune: {model: 2026-13-45}",
    "two commands": "- {prune: {}, push: {}}",
    "a long number": f"- prune: {{model: {'9' * 5000}}}",
    "an alias of itself": "&a [*a]",
    "a billion things": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    + "steps: [*a8]",
    "a tag of Python": "- !!python/object/apply:os.system [echo]",
    "a key that is a list": "? [a]\n: b",
    "nulls": "- null",
}


@pytest.mark.parametrize("what", [*ANYTHING, *RECIPES])
def test_a_recipe(what, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    (ANYTHING | {name: text(content) for name, content in RECIPES.items()})[what](file)
    before = listing(tmp_path)
    assert "recipe" in refused(capsys, "run", file, "--dry-run")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "what", [*ANYTHING, "an impossible date", "a billion things", "an alias of itself", "a list in a list"]
)
def test_a_file_of_options(what, model, rows, tmp_path, capsys):
    file = tmp_path / "options.yaml"
    more = {name: text(content) for name, content in RECIPES.items()}
    more["a list in a list"] = text("lr_scheduler_kwargs: {a: {2026-01-01: 2026-01-02}}\nlayerdrop: [[0.1]]")
    (ANYTHING | more)[what](file)
    before = listing(tmp_path)
    words = ["--model", model, "--train-file", rows, "--validation-file", rows, "--output_dir", tmp_path / "out"]
    refused(capsys, "train", "--config", file, *words)
    assert listing(tmp_path) == before


# --- Journals -------------------------------------------------------------------------------------

WRONG_RECORDS = [
    "[1, 2]",
    "3",
    '{"version": 1, "fingerprint": "x"}',
    *(json.dumps({"version": 1, "fingerprint": "x", **RESULT, **wrong}) for wrong in WRONG_RESULTS[:-1]),
    NESTED,
    "\ud800",
]


@pytest.mark.parametrize(
    "what",
    [*(name for name in ANYTHING if name not in ("nothing", "a number", "no UTF-8")), *WRONG_RECORDS],
    ids=lambda what: what[:60],
)
def test_a_journal_of_a_search(what, tmp_path):
    file = tmp_path / "journal"
    (ANYTHING.get(what) or text((what + "\n").encode("utf-8", "surrogatepass")))(file)
    before = listing(tmp_path)
    with soon(), pytest.raises(LayerDropConfigError, match="journal' is not one of a search"):
        ScoreJournal(file, "x")
    assert listing(tmp_path) == before


def test_a_journal_of_a_search_gives_back_what_it_kept(tmp_path):
    result = SubNetworkResult({"encoder": (0, 2)}, 10, {"f1": 0.5, "none": float("nan")}, None, 2)
    ScoreJournal(tmp_path / "journal", "x").add([result])
    found = ScoreJournal(tmp_path / "journal", "x").find({"encoder": (0, 2)})
    assert found is not None
    assert found.metrics["f1"] == 0.5


@pytest.mark.parametrize("place", ["x", None, [], {}, -1, 1.5])
def test_a_journal_of_a_recipe(place, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("- inspect nowhere")
    Journal(tmp_path / "recipe.yaml.journal", "a recipe", ()).add({"place": place, "words": [], "state": "done"})
    before = listing(tmp_path)
    assert "not one of a recipe" in refused(capsys, "run", tmp_path / "recipe.yaml", "--dry-run")
    assert listing(tmp_path) == before
