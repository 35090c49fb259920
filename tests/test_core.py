"""The package without its extras: what works, and what is said of the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_layerdrop.errors import EXTRAS, LayerDropError, MissingExtraError, require

SCRIPT = Path(__file__).parent / "support" / "core_alone.py"


def test_the_core_alone_trains_measures_cuts_saves_pushes_and_serves() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--blocked"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pushed = json.loads(done.stdout.splitlines()[-1])  # after what Trainer logs
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(pushed)


def test_what_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for extra, libraries in EXTRAS.items():
        for library in libraries:
            monkeypatch.setitem(sys.modules, library, None)
            with pytest.raises(MissingExtraError) as caught:
                require(library)
            assert library in str(caught.value)
            assert str(caught.value).endswith(f'pip install "hf-layerdrop[{extra}]".')
            assert isinstance(caught.value, LayerDropError | ImportError)


def test_what_is_installed_is_not_refused() -> None:
    require("datasets", "matplotlib")
