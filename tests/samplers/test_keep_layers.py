import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.keep_layers import choice_behind, evenly_spread, format_keep_layers, parse_keep_layers

ONE_STACK = {"encoder": 12}
TWO_STACKS = {"encoder": 6, "decoder": 4}


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (6, (0, 2, 4, 6, 8, 11)),
        ("6", (0, 2, 4, 6, 8, 11)),
        (np.int64(6), (0, 2, 4, 6, 8, 11)),
        (1, (11,)),
        (12, tuple(range(12))),
        ([6], (6,)),
        ("6,", (6,)),
        (np.array([6]), (6,)),
        (torch.tensor([6]), (6,)),
        (torch.tensor(6), (0, 2, 4, 6, 8, 11)),
        ("::1", tuple(range(12))),
        (":", tuple(range(12))),
        (slice(None), tuple(range(12))),
        ("0,2,4", (0, 2, 4)),
        (" 12 ", tuple(range(12))),
        ("11, 0 ,-2", (0, 10, 11)),
        ([4, 0, 2], (0, 2, 4)),
        ({7, 3}, (3, 7)),
        (np.array([2, 1]), (1, 2)),
        (range(5, 2, -1), (3, 4, 5)),
        ([-1, 0], (0, 11)),
        ("::2", (0, 2, 4, 6, 8, 10)),
        (slice(None, None, 2), (0, 2, 4, 6, 8, 10)),
        ("3:9", (3, 4, 5, 6, 7, 8)),
        ("-3:", (9, 10, 11)),
        (slice(np.int64(3), 5), (3, 4)),
        ("every_other", (0, 2, 4, 6, 8, 10)),
        ("every_other:0.5", (0, 2, 4, 6, 8, 10)),
        ("every_other:0.25", (0, 1, 2, 4, 5, 6, 8, 9, 10)),
        ("every_other:1/3", (0, 1, 3, 4, 6, 7, 9, 10)),
        ("every_other:0.333333333333", (0, 1, 3, 4, 6, 7, 9, 10)),
        ("first:3", (0, 1, 2)),
        ("last:3", (9, 10, 11)),
        ("all", tuple(range(12))),
        (None, tuple(range(12))),
        ({"encoder": "::4"}, (0, 4, 8)),
        ("encoder=0,-1", (0, 11)),
    ],
)
def test_every_form_of_the_grammar(spec, kept):
    assert parse_keep_layers(spec, ONE_STACK) == {"encoder": kept}


@pytest.mark.parametrize(
    ("spec", "encoder", "decoder"),
    [
        ({"encoder": 3, "decoder": "::2"}, (0, 2, 5), (0, 2)),
        ("encoder=3;decoder=::2", (0, 2, 5), (0, 2)),
        (" decoder = last:1 ; encoder = 0,1 ", (0, 1), (3,)),
        ({"decoder": [1]}, (0, 1, 2, 3, 4, 5), (1,)),
        ({"encoder": slice(4, None), "decoder": None}, (4, 5), (0, 1, 2, 3)),
        (2, (0, 5), (0, 3)),
        (np.int64(2), (0, 5), (0, 3)),
        (" 2 ", (0, 5), (0, 3)),
        ("every_other", (0, 2, 4), (0, 2)),
        ("every_other:1/3", (0, 1, 3, 4), (0, 1, 3)),
        ("first:3", (0, 1, 2), (0, 1, 2)),
        ("last:1", (5,), (3,)),
        ("all", (0, 1, 2, 3, 4, 5), (0, 1, 2, 3)),
        (None, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3)),
    ],
)
def test_stacks_are_named_or_are_an_encoder_decoder_that_one_rule_means(spec, encoder, decoder):
    assert parse_keep_layers(spec, TWO_STACKS) == {"encoder": encoder, "decoder": decoder}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (0, "depth of 0"),
        (13, "from 1 to 12"),
        ("-1", "'-1,'"),
        (True, "True"),
        (np.True_, "True"),
        ([True, 2], "True"),
        (1.5, "1.5"),
        ([1.0], "1.0"),
        ([12], "0 to 11"),
        ("0,-13", "-12 to -1"),
        ([3, 3], "layer 3 .* twice"),
        ("0,-12", "layer 0 .* twice"),
        ([], "keeps no layer"),
        ("", "''"),
        ("9:3", "keeps no layer"),
        ("20:", "keeps no layer"),
        ("::-1", "step -1"),
        (slice(None, None, 0), "step 0"),
        (slice("a", None), "'a'"),
        ("every_othr", "did you mean 'every_other'"),
        ("lst:3", "did you mean 'last'"),
        ("every_other:0.3", "1/3 or 1/4"),
        ("every_other:0.7", "give a depth"),
        ("every_other:nan", "0.25"),
        ("every_other:1/0", "0.25"),
        ("every_other:-0.5", "0.25"),
        ("first", "first:n"),
        ("first:0", "from 1 to 12"),
        ("last:13", "from 1 to 12"),
        ("all:3", "write 'all'"),
        ({}, "'encoder'"),
        ({"decoder": 6}, "'decoder'.*'encoder'"),
        ("decoder=6", "'decoder'.*'encoder'"),
        ({"encoder": {"encoder": 6}}, "not known"),
        ({"encoder": "encoder=6"}, "not known"),
        ("encoder=;", "stack=layers"),
        ("encoder=6;encoder=6", "twice"),
        (b"6", "b'6'"),
        (np.array(1.5), "1.5"),
        (np.array([[1, 2]]), "whole numbers"),
        (object(), "object"),
        ("no/such/selection.json", "No such file"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(spec, said):
    with pytest.raises(KeepLayersError, match=said) as refusal:
        parse_keep_layers(spec, ONE_STACK)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("spec", ["::2", "0,1", "1,", [0], {0, 1}, np.arange(2), slice(2), range(2)])
def test_bare_indices_for_two_stacks_name_them(spec):
    with pytest.raises(KeepLayersError, match=r"'encoder' .*'decoder'.* say which"):
        parse_keep_layers(spec, TWO_STACKS)


@pytest.mark.parametrize("spec", [1, "1", "::2", [0], "every_other", "first:1"])
@pytest.mark.parametrize("stacks", [("text", "vision"), ("vision", "encoder", "decoder")])
def test_stacks_that_are_no_encoder_decoder_have_to_be_named(spec, stacks):
    with pytest.raises(KeepLayersError, match=" and ".join(f"'{stack}' .4 layers." for stack in stacks)):
        parse_keep_layers(spec, dict.fromkeys(stacks, 4))


def test_a_depth_above_that_of_one_stack_is_refused_by_its_name():
    with pytest.raises(KeepLayersError, match="depth of 6, but the stack 'decoder' has 4 layers"):
        parse_keep_layers(6, TWO_STACKS)


def test_a_rule_that_is_none_is_told_so_of_two_stacks_too():
    with pytest.raises(KeepLayersError, match="did you mean 'every_other'"):
        parse_keep_layers("evry_other", TWO_STACKS)


@pytest.mark.parametrize("as_type", [str, Path])
def test_selection_file(tmp_path, as_type):
    path = tmp_path / "epoch=3" / "selection.json"  # an equals sign in a path is not a stack
    path.parent.mkdir()
    path.write_text(json.dumps({"keep_layers": {"encoder": [5, 0], "decoder": [1]}, "score": 0.8}))
    assert parse_keep_layers(as_type(path), TWO_STACKS) == {"encoder": (0, 5), "decoder": (1,)}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"keep_layers": "other.json"}', '{"layers": [0]}', "[" * 99999]
)
def test_broken_selection_file(tmp_path, content):
    path = tmp_path / "selection.json"
    path.write_text(content)
    with pytest.raises(KeepLayersError, match=r"selection\.json"):
        parse_keep_layers(str(path), TWO_STACKS)


@given(st.integers(1, 100), st.data())
def test_evenly_spread_holds_both_ends(of, data):
    depth = data.draw(st.integers(1, of))
    kept = evenly_spread(depth, of)
    assert len(set(kept)) == depth
    assert list(kept) == sorted(kept)
    assert kept[-1] == of - 1
    assert depth == 1 or kept[0] == 0
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


DEPTHS = st.dictionaries(st.sampled_from(["encoder", "decoder", "layers"]), st.integers(1, 40), min_size=1)
TEXT_LIKE_THE_GRAMMAR = st.lists(
    st.sampled_from([*"0123456789,:;=-+ ./", "encoder", "decoder", "layers", "every_other", "first", "last", "all"]),
    max_size=8,
).map("".join)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), TEXT_LIKE_THE_GRAMMAR)
ANYTHING = st.recursive(
    st.one_of(PLAIN, st.builds(slice, PLAIN, PLAIN, PLAIN), st.lists(st.integers(-50, 50)), st.integers(-3, 45)),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(st.text(), st.sampled_from(["encoder", "decoder"])), inner)
    ),
    max_leaves=6,
)


@given(ANYTHING, DEPTHS)
def test_anything_is_either_valid_or_refused(spec, depths):
    try:
        kept = parse_keep_layers(spec, depths)
    except KeepLayersError:
        return
    assert list(kept) == list(depths)
    for stack, indices in kept.items():
        assert indices
        assert list(indices) == sorted(set(indices))
        assert all(type(index) is int and 0 <= index < depths[stack] for index in indices)


@given(DEPTHS, st.data())
def test_format_reads_back(depths, data):
    kept = {
        stack: tuple(sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1))))
        for stack, depth in depths.items()
    }
    line = format_keep_layers(kept)
    assert "\n" not in line
    assert parse_keep_layers(line, depths) == kept
    assert parse_keep_layers(kept, depths) == kept


@pytest.mark.parametrize(
    ("spec", "choice"),
    [
        (6, {"strategy": "spread"}),
        ("6", {"strategy": "spread"}),
        ({"encoder": 6, "decoder": "3"}, {"strategy": "spread"}),
        ("encoder=6;decoder=3", {"strategy": "spread"}),
        ({"encoder": 6, "decoder": "::2"}, {}),
        ("every_other:0.25", {"strategy": "every_other"}),
        ("first:6", {"strategy": "first"}),
        ("0,2,4", {}),
        ([0, 2], {}),
        (slice(None, None, 2), {}),
        (None, {}),
    ],
)
def test_the_choice_behind_a_specification_is_known_where_it_says_so(spec, choice):
    assert choice_behind(spec) == choice


def test_the_choice_behind_a_selection_file_is_what_the_search_wrote(tmp_path):
    file = tmp_path / "selection.json"
    file.write_text(json.dumps({"strategy": "beam", "metric": "f1", "score": 0.5, "keep_layers": [0]}))
    assert choice_behind(file) == choice_behind(str(file)) == {"strategy": "beam", "metric": "f1", "score": 0.5}
    file.write_text(json.dumps({"keep_layers": [0]}))
    assert choice_behind(file) == {}


def test_the_only_stack_may_be_named_as_older_weight_files_name_it():
    assert parse_keep_layers("encoder=0,2", {"layers": 4}) == {"layers": (0, 2)}
    assert parse_keep_layers({"layers": 1}, {"encoder": 4}) == {"encoder": (3,)}
    for named, depths in (("decoder", {"layers": 4}), ("layers", {"encoder": 4, "decoder": 4})):
        with pytest.raises(KeepLayersError, match="use these names"):
            parse_keep_layers({named: 1}, depths)


def test_the_choice_behind_a_record_is_what_the_record_says():
    record = SimpleNamespace(keep_layers={"encoder": (0, 1)}, strategy="beam", metric="f1", score=0.5)
    assert choice_behind(record) == {"strategy": "beam", "metric": "f1", "score": 0.5}
    assert parse_keep_layers(record, ONE_STACK) == {"encoder": (0, 1)}


@pytest.mark.parametrize(("kept", "written"), [((6,), "6,"), ((2, 0), "0,2"), ((0, 1, 5), "0,1,5")])
def test_a_single_layer_is_not_written_as_a_depth(kept, written):
    assert format_keep_layers({"encoder": kept}) == written


@pytest.mark.parametrize("spec", ["encoder=", "=6", "encoder=6;", "encoder;decoder=2"])
def test_a_part_without_stack_or_layers_is_refused(spec):
    with pytest.raises(KeepLayersError, match="which is not stack=layers"):
        parse_keep_layers(spec, TWO_STACKS)


@pytest.mark.parametrize(
    "spec", [0, 13, "13", [12], "12,", ["x"], "12:", slice(12, None), "first:0", "last:13", "first", "last", 2.5, "nth"]
)
def test_what_a_stack_cannot_keep_is_refused_by_its_name(spec):
    with pytest.raises(KeepLayersError, match="stack 'encoder'") as refused:
        parse_keep_layers({"encoder": spec}, ONE_STACK)
    if isinstance(spec, str) and spec.startswith(("first", "last")):
        assert f"keep_layers is {spec!r}, but" in str(refused.value)
        assert f"write '{spec.partition(':')[0]}:n' with n from 1 to 12" in str(refused.value)


@pytest.mark.parametrize(("spec", "hinted"), [(-13, False), (-12, True), (0, True), (12, None), (13, False)])
def test_a_wrong_depth_that_is_an_index_is_told_how_to_be_one(spec, hinted):
    if hinted is None:
        assert parse_keep_layers(spec, ONE_STACK)["encoder"] == tuple(range(12))
        return
    with pytest.raises(KeepLayersError) as refused:
        parse_keep_layers(spec, ONE_STACK)
    assert (f"'{spec},' for the single layer {spec}" in str(refused.value)) == hinted


@pytest.mark.parametrize("share", ["0.6", "0.75", "1", "2/3"])
def test_every_other_drops_at_most_half(share):
    with pytest.raises(KeepLayersError, match="cannot drop more than half"):
        parse_keep_layers(f"every_other:{share}", ONE_STACK)


def test_all_of_one_stack_is_all_of_it():
    assert parse_keep_layers("encoder=all;decoder=0,1", TWO_STACKS) == {"encoder": tuple(range(6)), "decoder": (0, 1)}


@pytest.mark.parametrize("depths", [{"encoder": 1, "decoder": 6}, {"text": 5, "vision": 12}])
def test_the_example_of_a_refusal_can_be_given(depths):
    with pytest.raises(KeepLayersError) as refused:
        parse_keep_layers([0], depths)
    (example,) = re.findall("for example '(.*)'", str(refused.value))
    assert set(parse_keep_layers(example, depths)) == set(depths)
