"""What `inspect` prints: rounded numbers and words, and what goes for every model only where it is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from classifiers import model, save_classifier  # noqa: F401
from hf_layerdrop.cli import run
from hf_layerdrop.models.named import LayerDropBertForSequenceClassification


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    base = save_classifier(folder / "base")
    LayerDropBertForSequenceClassification.from_pretrained(base, layerdrop=0.25).save_pretrained(folder / "model")
    return folder / "model"


def test_numbers_are_rounded_and_the_record_is_in_words(trained, capsys):
    assert run(["inspect", str(trained), "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(trained)]) == 0
    text = capsys.readouterr().out
    assert f"{exact['parameters']:,}" not in text
    assert f"{exact['parameters'] / 1000:.3g}k" in text
    assert re.search(r"^trained with +0\.25 *$", text, re.MULTILINE)
    assert "{" not in text


def test_what_goes_for_every_model_is_left_out_unless_asked_for(trained, capsys):
    assert run(["inspect", str(trained)]) == 0
    brief = capsys.readouterr().out
    assert run(["inspect", str(trained), "--all"]) == 0
    full = capsys.readouterr().out
    assert "FSDP2" in full
    assert "FSDP2" not in brief
    assert "traps" in brief
    assert set(brief.split()) <= set(full.split())
