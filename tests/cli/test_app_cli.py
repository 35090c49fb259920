"""hf-layerdrop app: which model it opens, and what it says before it opens one."""

from __future__ import annotations

import socket
import sys

import pytest

from app_models import app_folder  # noqa: F401 - a fixture
from hf_layerdrop import demo_checkpoint, launch_app
from hf_layerdrop.app import page
from hf_layerdrop.app.page import check_port
from hf_layerdrop.cli import run
from hf_layerdrop.cli.app_page import default_model
from hf_layerdrop.cli.demo_run import WHOLE
from hf_layerdrop.errors import LayerDropConfigError


@pytest.fixture
def launched(monkeypatch):
    """Stand in for Gradio, which is not installed here: note what would be opened."""
    monkeypatch.setattr("hf_layerdrop.cli.app_page.require", lambda name: None)
    calls = []
    monkeypatch.setattr(page, "launch_app", lambda model, **settings: calls.append((model, settings)))
    return calls


def test_without_gradio_the_pip_line_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = 'This needs gradio, which is not installed: pip install "hf-layerdrop[app]".'
    assert run(["app"]) == 2
    assert capsys.readouterr().err == f"Error: {said}\n"
    with pytest.raises(ImportError) as refused:
        launch_app(tmp_path)
    assert str(refused.value) == said


def test_it_opens_the_model_at_the_own_address_alone(launched, capsys, app_folder):
    folder = str(app_folder("BertForMaskedLM"))
    assert run(["app", folder]) == 0
    assert launched == [(folder, {"host": "127.0.0.1", "port": 7860, "share": False})]
    assert "Warning" not in capsys.readouterr().err


def test_who_opens_it_to_others_is_told_so(launched, capsys, app_folder):
    folder = str(app_folder("BertForMaskedLM"))
    assert run(["app", folder, "--share"]) == 0
    assert "Warning: --share" in capsys.readouterr().err
    assert run(["app", folder, "--host", "0.0.0.0", "--port", "80"]) == 0
    assert "Warning: at 0.0.0.0" in capsys.readouterr().err
    assert [settings for _, settings in launched] == [
        {"host": "127.0.0.1", "port": 7860, "share": True},
        {"host": "0.0.0.0", "port": 80, "share": False},
    ]


def test_a_folder_that_is_no_model_is_one_sentence(launched, capsys, tmp_path):
    assert run(["app", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert launched == []


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            LayerDropConfigError, match=rf"cannot listen at 127.0.0.1:{port} \(.*in use\): give another"
        ):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_left_out_it_is_the_model_of_the_demo_or_what_that_begins_with(tmp_path):
    assert default_model(tmp_path) == str(demo_checkpoint())
    for name in ("3-layers", WHOLE):  # the second is the better one
        (tmp_path / name).mkdir()
        assert default_model(tmp_path) != str(tmp_path / name)  # an empty folder is no model
        (tmp_path / name / "config.json").touch()
        assert default_model(tmp_path) == str(tmp_path / name)
