"""The tests marked gpu, a row a file: what one process can try of placement, precision, compilation, wrappers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Measurement

FOLDER = Path(__file__).parents[2] / "tests" / "gpu"


class Outcomes:
    """A plugin of pytest that keeps what became of each test."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.passed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count it; a failure keeps the last line of its error."""
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed.append(f"{name}: {str(report.longrepr).strip().splitlines()[-1][:200]}")
        elif report.skipped:
            self.skipped.append(name)
        elif report.when == "call":
            self.passed += 1


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """A row for each file."""
    os.environ["LAYERDROP_TEST_DEVICE"] = device
    for file in sorted(FOLDER.glob("test_*.py")):
        yield file.stem, partial(_run, file)


def _run(file: Path) -> dict[str, Any]:
    import pytest

    outcomes = Outcomes()
    code = pytest.main([str(file), "-m", "gpu", "-p", "no:cacheprovider", "--no-header"], plugins=[outcomes])
    found = {"passed": outcomes.passed, "skips": ", ".join(outcomes.skipped)}
    if code or outcomes.failed:
        found["failed"] = "; ".join(outcomes.failed) or f"pytest ended with {code}"
    return found
