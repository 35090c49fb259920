"""Messages that the documentation quotes are those of the code."""

import ast
import re
from pathlib import Path

import pytest

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
