"""A journal gives back what was added, whatever a killed process left behind, and no other file is touched."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.checkpoints.journal import Journal, read_journal
from hf_layerdrop.errors import LayerDropConfigError

RECORDS = st.lists(st.fixed_dictionaries({"name": st.text(), "value": st.integers() | st.none()}), max_size=5)
FIELDS = ("name", "value")


def plain(records: list) -> list:
    return [{name: record[name] for name in FIELDS} for record in records]


@given(first=RECORDS, second=RECORDS, cut=st.integers(0, 200))
def test_all_finished_records_are_there_again(tmp_path_factory, first, second, cut):
    path = tmp_path_factory.mktemp("journal") / "deep" / "journal"
    assert read_journal(path, "tests", FIELDS) == []
    Journal(path, "tests", FIELDS).add(*first)
    line = json.dumps({"version": 1, "name": "torn", "value": 3}).encode()
    with path.open("ab") as file:
        file.write(line[: min(cut, len(line) - 1)] if cut > 1 else b"")
    assert plain(read_journal(path, "tests", FIELDS)) == first
    journal = Journal(path, "tests", FIELDS)
    for record in second:
        journal.add(record)
    assert plain(journal.records) == plain(Journal(path, "tests", FIELDS).records) == first + second


@pytest.mark.parametrize(
    "content",
    [
        "a novel\n",
        '{"name": "of a config"}\n',
        "unfinished",
        "[1]\n",
        "3\n",
        "\x00\n",
        '{"version": 2, "name": 1, "value": 2}\n',
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "precious"
    path.write_text(content)
    with pytest.raises(LayerDropConfigError, match="precious' is not one of tests, or of a later version"):
        Journal(path, "tests", FIELDS)
    assert path.read_text() == content


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(LayerDropConfigError, match="not one of tests"):
        Journal(tmp_path, "tests", FIELDS)


def test_records_from_before_versions_were_noted_are_read(tmp_path):
    (tmp_path / "journal").write_text('{"name": "a", "value": 1}\n')
    assert read_journal(tmp_path / "journal", "tests", FIELDS) == [{"name": "a", "value": 1}]
