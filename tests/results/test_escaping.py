"""What a stranger's files say is shown as it is, and does nothing."""

from __future__ import annotations

import ast
import csv
import io
import json

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from classifiers import save_classifier
from hf_layerdrop.cli import run
from hf_layerdrop.reports.card import CardInfo, MeasuredOn, render_card
from hf_layerdrop.reports.numbers import as_csv, as_markdown
from hf_layerdrop.reports.series import Series
from hf_layerdrop.results.escaping import cell, code, markdown, plain, quoted
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import render_markdown

HOSTILE = {
    "heading": "x\n# Owned",
    "block of code": "x\n```sh\nrm -rf ~\n```",
    "picture": "![a](https://evil.example/track.png)",
    "link": "[install](https://evil.example)",
    "tag": "<img src=x onerror=alert(1)>",
    "row of a table": "a | b |\n| c | d",
    "escape of a terminal": "\x1b[2J\x1b]0;title\x07",
    "direction": "safe\u202etxt.exe",
    "quotes": '", trust_remote_code=True) #',
}


def results(name: str) -> list[SubNetworkResult]:
    metrics = {name: 0.5}
    return [
        SubNetworkResult({"layers": (0, 2)}, 10, metrics, None, 2),
        SubNetworkResult({"layers": (0,)}, 5, metrics, None, 1),
    ]


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_a_card_says_it_and_does_nothing(said: str) -> None:
    config = {
        "architectures": [said],
        "model_type": "bert",
        "hf_layerdrop": {"strategy": said, "metric": said, "score": 0.5, "keep_layers": {"layers": [0, 2]}},
    }
    info = CardInfo(
        said, source=said, revision=said, inherited={"base_model": said}, measured_on=MeasuredOn(said, said)
    )
    text = str(render_card(config, info, parameters=10, results=results(said)))
    tame = str(render_card({"hf_layerdrop": {}}, CardInfo("tame"), parameters=10, results=results("f1")))
    found, expected = parts_of(text), parts_of(tame)
    assert [kind for kind, _ in found if kind in ("heading_open", "fence", "table_open")] == [
        kind for kind, _ in expected if kind in ("heading_open", "fence", "table_open")
    ]
    assert not {kind for kind, _ in found} & {"image", "html_block", "html_inline"}
    assert {href for kind, href in found if kind == "link_open"} == {"https://arxiv.org/abs/1909.11556"}
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    codes = [line for line in text.splitlines() if "from_pretrained(" in line]
    assert all(isinstance(ast.parse(line).body[0], ast.Assign) for line in codes)
    assert all(len(call.args) == 1 and not call.keywords for line in codes for call in [ast.parse(line).body[0].value])


def parts_of(card: str) -> list[tuple[str, str]]:
    """Return what a reader of Markdown finds in a card: the kinds of parts, and where links lead."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(ModelCard(card).text)
    flat = [part for token in tokens for part in (token, *(token.children or ()))]
    return [(token.type, str(token.attrs.get("href", ""))) for token in flat]


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_tables_have_the_cells_that_they_had(said: str) -> None:
    table = render_markdown(results(said))
    lines = table.splitlines()
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {5}
    assert as_markdown([Series(said, results("f1"))], said).count("\n#") == 1


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "+1", "-2+3", " =cmd()"])
def test_a_cell_is_no_formula(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([Series(name, results("f1"))]))))
    assert rows[0]["series"] == f"'{name}" or name in ("+1",)
    assert cell("-0.5") == "-0.5"
    assert cell(3) == 3


def test_a_text_is_one_line_of_bounded_length() -> None:
    assert plain("a\n\n b\tc\x00d") == "a b cd"
    assert len(plain("x" * 10**6)) == 1001
    assert markdown("eval_f1, 0.5 (3)") == "eval_f1, 0.5 (3)"
    assert code("a`b") == "`a'b`"
    assert quoted('a"\n') == '"a\\""'


SAID = "[/x] [bold]b[/bold] \x1b[2J\x1b]0;title\x07 \u202eexe :smile:"


def test_a_terminal_shows_it_literally(tmp_path, capsys) -> None:
    """In `inspect` of a stranger's folder: its model type, its class, and what it says of LayerDrop."""
    folder = save_classifier(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["hf_layerdrop"] = {"source": SAID, "strategy": SAID}
    (folder / "config.json").write_text(json.dumps(config))
    assert run(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "[/x] [bold]b[/bold]" in shown
    assert ":smile:" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_an_error_shows_it_literally(tmp_path, capsys) -> None:
    assert run(["prune", str(tmp_path / SAID.replace("/", "")), "--keep-layers", "2", "--output", "o"]) == 2
    shown = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
