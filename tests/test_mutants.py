"""The planted no-ops still stand where ``tests/mutants.py`` says: quick to see here, late in its own run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutants import MUTANTS, PACKAGE, ROOT

TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_stands_once_still_is_python_and_names_tests_that_exist(mutant):
    source = (ROOT / "src" / PACKAGE / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    planted = source.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(source))
    for test in mutant.tests:
        file, name = test.split("::")
        functions = [node.name for node in ast.parse((TESTS / file).read_text()).body if hasattr(node, "name")]
        assert name.partition("[")[0] in functions
