"""What the documentation says of the code is true of it: messages are quoted as they are, names exist."""

import ast
import re
from pathlib import Path

import pytest

import hf_layerdrop

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def messages():
    """Every text in the code, each on one line; what is filled in is a line end."""
    texts = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


@pytest.mark.parametrize("quoted", QUOTED)
def test_messages_are_quoted_as_they_are(quoted, messages):
    pattern = re.compile(".*?".join(map(re.escape, quoted.split("..."))).replace(r"\ ", " "), re.DOTALL)
    assert any(pattern.search(message) for message in messages)


def test_there_are_messages_to_look_for():
    assert len(QUOTED) > 10


def test_public_names_in_the_documentation_exist():
    """Whatever pages import from hf_layerdrop, or call a class or error of it, is a public name."""
    imported = re.compile(r"from hf_layerdrop import (?:\(([^)]*)\)|(.*))")
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for match in imported.finditer(page.read_text()):
            for name in re.split(r"[,\s]+", (match[1] or match[2]).partition("#")[0].strip()):
                assert not name or name == "..." or name in dir(hf_layerdrop), f"{page.name}: {name}"
