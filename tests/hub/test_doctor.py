"""What `hf-layerdrop inspect` says of a checkpoint, held against what injecting and pruning do to it."""

import copy
import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig

from architectures.tiny import build_tiny
from conftest import build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.cli import run
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.hub.doctor.notes import NOTES

FAMILIES = ("bert", "gpt2", "llama", "qwen3", "mixtral", "bart", "t5", "whisper", "wav2vec2", "clip", "llava",
            "granitemoehybrid", "mistral_large4_text", "longformer", "vjepa2")  # fmt: skip
BIASED, TIED, KINDS = "position bias", "tied weights", "kinds of layers"
BY_NUMBER, UNLIKE, SLICES, BORROWED = "hidden states by number", "unlike layers", "slices", "borrowed"
TRAPS = {
    "llama": set(),
    "gpt2": {TIED},
    "t5": {BIASED, TIED},
    "llava": {BY_NUMBER},
    "granitemoehybrid": {KINDS},
    "modernbert": {KINDS, UNLIKE},  # its class without a head, which its config says is tied
    "gemma4_text": {KINDS, SLICES, TIED},
    "hy_v4": {BORROWED},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a tiny model of a type once; return it with its folder."""
    known = {}

    def of(model_type):
        if model_type not in known:
            known[model_type] = build_tiny(model_type).model, tmp_path_factory.mktemp("saved") / model_type
            known[model_type][0].save_pretrained(known[model_type][1])
        return known[model_type]

    return of


def facts_of(folder, capsys):
    capsys.readouterr()
    assert run(["inspect", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def flat(config, prefix=""):
    """Return the fields of a config and of its parts by their dotted names."""
    found = {}
    for name, value in config.items():
        is_part = isinstance(value, dict) and name.endswith("_config") and name != "per_layer_config"
        found |= flat(value, f"{prefix}{name}.") if is_part else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_fields_that_a_cut_is_said_to_change_are_those_it_changes(model_type, saved, tmp_path, capsys):
    model, folder = saved(model_type)
    facts = facts_of(folder, capsys)
    assert {stack["name"]: stack["depth"] for stack in facts["stacks"]} == {
        name: stack.depth for name, stack in find_stacks(model).items()
    }
    before = flat(json.loads((folder / "config.json").read_text()))
    for stack in facts["stacks"]:
        cut = type(model).from_pretrained(folder, config=type(model.config).from_pretrained(folder))
        kept = {name: list(range(found.depth)) for name, found in find_stacks(cut).items()}
        prune_layers(cut, kept | {stack["name"]: [1, 2, 3]})
        cut.save_pretrained(tmp_path / stack["name"])
        after = flat(json.loads((tmp_path / stack["name"] / "config.json").read_text()))
        after.pop("hf_layerdrop")
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert stack["config_field"] in changed
        assert changed <= set(stack["fields_that_change"])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_structure_is_called_impossible_that_can_be_dropped(model_type, saved, capsys):
    model, folder = saved(model_type)
    stacks = facts_of(folder, capsys)["stacks"]
    for structure in ("layer", "attention", "ffn", "head"):
        said = {found["drop"] for stack in stacks for found in stack["structures"] if found["structure"] == structure}
        copied = type(model)(copy.deepcopy(model.config))  # of its own: no search for who else holds it
        try:
            inject_layerdrop(copied, LayerDropConfig(0.5, structure=structure))
        except LayerDropError:
            assert structure != "layer"
            assert said != {"yes"}
        else:
            assert "no" not in said


@pytest.mark.parametrize("model_type", TRAPS)
def test_traps_are_found_by_looking_at_headers(model_type, saved, capsys):
    facts = facts_of(saved(model_type)[1], capsys)
    assert {trap["name"] for trap in facts["traps"]} == TRAPS[model_type]
    assert all(trap["says"] for trap in facts["traps"])


def test_native_layerdrop_is_told_with_its_rate_and_what_becomes_of_it(saved, tmp_path, capsys):
    model, _ = saved("bart")
    model.config.encoder_layerdrop = 0.25
    model.save_pretrained(tmp_path)
    (trap,) = [trap for trap in facts_of(tmp_path, capsys)["traps"] if trap["name"] == "native LayerDrop"]
    assert trap["stack"] == "encoder"
    assert "encoder_layerdrop = 0.25" in trap["says"]
    model.config.encoder_layerdrop = 0.0


@pytest.mark.parametrize(("rate", "least"), [(0.25, 2), (0.125, 3), (0.5, None)])
def test_depths_that_the_depth_sampler_never_drew_are_told(rate, least, tmp_path, capsys):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig(rate, sampler="depth"))
    model.save_pretrained(tmp_path)
    says = [trap["says"] for trap in facts_of(tmp_path, capsys)["traps"] if trap["name"] == "depths never drawn"]
    assert [f"drew {least} to 4 layers" in text for text in says] == [True] * (least is not None)
    encoder, drawn = layerdrop_state(model).draws["encoder"], set()
    for step in range(100):
        encoder.begin_step(step)
        drawn.add(sum(encoder.draw()))
    assert drawn == set(range(least or 1, 5))


@pytest.mark.parametrize("rates", [[math.nan], [math.inf], [10**400], [2.0], ["x"], [], None, 3, {"a": 1}])
def test_rates_of_another_s_making_are_passed_over(rates, saved, tmp_path, capsys):
    folder = shutil.copytree(saved("bert")[1], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["hf_layerdrop"] = {"rates": {"encoder": rates}, "trained_with": {"sampler": "depth"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "depths never drawn" not in {trap["name"] for trap in facts_of(folder, capsys)["traps"]}


def test_notes_come_from_one_table_and_speak_of_the_model(saved, capsys):
    notes = facts_of(saved("bart")[1], capsys)["notes"]
    assert set(NOTES) <= set(notes)
    assert "model.decoder.layers" in notes["FSDP2"]
    assert "use_cache" in notes["compile, two stacks"]
    assert "compile, two stacks" not in facts_of(saved("llama")[1], capsys)["notes"]
    assert "2 kinds" in facts_of(saved("granitemoehybrid")[1], capsys)["notes"]["compile, kinds"]


@pytest.mark.parametrize("model_type", ["albert", "squeezebert"])
def test_what_is_refused_says_why_and_ends_with_2(model_type, saved, capsys):
    _, folder = saved(model_type)
    assert run(["inspect", str(folder), "--json"]) == 2
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["supported"] is False
    assert facts["reason"] in err
    assert run(["inspect", str(folder)]) == 2
    assert capsys.readouterr().out == ""


def test_a_pickle_is_told_without_being_opened(saved, tmp_path, capsys):
    _, folder = saved("bert")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all")
    (trap,) = facts_of(tmp_path, capsys)["traps"]
    assert trap["name"] == "pickle"
    assert "--allow-pickle" in trap["says"]
    assert run(["inspect", str(tmp_path)]) == 0
    assert "pickle" in capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["t5", "llava", "mixtral"])
def test_tables_show_stacks_structures_traps_and_notes(model_type, saved, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    model, folder = saved(model_type)
    capsys.readouterr()
    assert run(["inspect", str(folder), "--all"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for stack in find_stacks(model):
        assert stack in out
    assert all(word in out for word in ("attention", "pruned", "traps", "DDP", "compile"))


def test_a_layer_that_is_unlike_the_others_is_named(tmp_path, saved, capsys):
    model, _ = saved("vit")
    model.save_pretrained(tmp_path)
    whole = facts_of(tmp_path, capsys)
    assert UNLIKE not in {trap["name"] for trap in whole["traps"]}
    stack = find_stacks(model)["layers" if "layers" in find_stacks(model) else "encoder"]
    first = stack.layers(model)[0]
    first.extra = torch.nn.Linear(2, 2)
    model.save_pretrained(tmp_path)
    del first.extra
    (trap,) = [trap for trap in facts_of(tmp_path, capsys)["traps"] if trap["name"] == UNLIKE]
    assert "layers 0 differ" in trap["says"]
    assert "extra" in trap["says"]


@pytest.mark.parametrize(
    "odd",
    [
        {"per_layer_config": {"x": 1}},
        {"per_layer_config": [1]},
        {"_heterogeneity_spec": {"a": 1}},
        {"kv_source_layers": ["a", None, 2, 99]},
        {"num_kv_shared_layers": 2, "layer_types": [[], {}, 1, "a"]},
        {"layerdrop": "much", "auto_map": {"AutoModel": "code.Model"}},
    ],
)
def test_an_odd_config_is_described_or_refused_as_transformers_reads_it(odd, saved, tmp_path, capsys):
    model, folder = saved("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | odd))
    try:
        AutoConfig.from_pretrained(tmp_path)
    except Exception:
        assert run(["inspect", str(tmp_path)]) == 2
        assert "cannot be read" in capsys.readouterr().err
        return
    facts = facts_of(tmp_path, capsys)
    assert facts["stacks"][0]["depth"] == 4
    assert ("auto_map" in odd) == ("own code" in {trap["name"] for trap in facts["traps"]})
