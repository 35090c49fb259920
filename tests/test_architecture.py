"""The floors of the package: a module imports only from floors below its own."""

from __future__ import annotations

import ast
import importlib.resources
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import hf_layerdrop

ROOT = Path(hf_layerdrop.__file__).parent
FLOORS = [
    {"errors", "frames", "fingerprints"},
    {
        "schedules",
        "keep",
        "draws",
        "families",
        "accumulation",
        "adoption",
        "adapters",
        "forwards",
        "frozen",
        "handing",
        "learning",
        "naming",
        "numbering",
        "outputs",
        "recording",
        "vocabulary",
        "wrappers",
    },
    {"config", "header_stacks", "results", "recomputation", "distributed", "bias", "borrowing", "scratch", "compiling"},
    {"headers", "agreement", "provenance", "model_types"},
    {"stack_draws", "complaints"},
    {"stacks", "state", "structures", "doctor", "zero3", "weight_files", "page_cache", "starting"},
    {
        "stepping",
        "rebuilding",
        "structure_drop",
        "http_ranges",
        "lazy_tensors",
        "weight_names",
        "masking",
    },
    {"step_callback"},
    {"injection", "downloads"},
    {"generation_cache"},
    {"pruning", "learned", "lightning", "structure_networks", "head_pruning", "remote_headers"},
    {"cuts"},
    {"loading", "metrics", "prefixes", "encoders", "sharing"},
    {"sources"},
    {"mixin", "evaluation"},
    {"named", "callbacks"},
    {"modeling"},
    {"tasks"},
    {"trainers"},
    {"selection"},
    {"report"},
    {"hub", "training"},
    {"demo", "distillation"},
    {"arms"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
NO_TORCH = (
    "errors",
    "schedules",
    "keep",
    "draws",
    "config",
    "families",
    "header_stacks",
    "headers",
    "provenance",
    "model_types",
    "remote_headers",
    "borrowing",
    "doctor",
    "weight_files",
    "page_cache",
    "http_ranges",
    "downloads",
    "results",
    "report",
    "tasks",
    "cli",
)


def modules() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def home(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_by(path: Path) -> set[str]:
    """Return the parts of the package that a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_layerdrop"):
            parts = node.module.split(".")[1:]
            names |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hf_layerdrop.")}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_lower_floors(path: Path) -> None:
    own = home(path)
    siblings = imported_by(path) - {own, "__version__"}
    assert own in FLOOR_OF, f"give {own} a floor"
    assert not {name for name in siblings if FLOOR_OF[name] >= FLOOR_OF[own]}


@pytest.mark.parametrize("name", NO_TORCH)
def test_the_lower_floors_start_without_torch(name: str) -> None:
    code = f"import sys, hf_layerdrop.{name}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cutting_and_serving_do_not_import_trainer() -> None:
    """It imports PEFT and bitsandbytes where they are installed, which takes seconds."""
    code = (
        "import sys, hf_layerdrop.modeling, hf_layerdrop.hub.save, hf_layerdrop.hub.serve; "
        "sys.exit('transformers.trainer_utils' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_importable_and_documented() -> None:
    for name in hf_layerdrop.__all__:
        assert getattr(hf_layerdrop, name) is not None
        if name != "__version__":
            assert getattr(hf_layerdrop, name).__doc__
    with pytest.raises(AttributeError):
        _ = hf_layerdrop.no_such_name


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("hf_layerdrop").joinpath("py.typed").is_file()


def test_no_model_family_is_named_outside_of_its_table() -> None:
    words = ('"bert"', '"roberta"', '"bart"', '"t5"', '"albert"', "'bert'", "'bart'")
    for path in modules():
        if home(path) != "families":
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if f"== {word}" in text or f"in ({word}" in text], path


def test_the_source_distribution_holds_what_its_tests_need(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "demo-output", "runs")
    shutil.copytree(root, tmp_path / "copy", ignore=left_out)
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "benchmarks", "examples", "docs", "src/hf_layerdrop"):
        files = {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy" / folder).rglob("*.*")}
        assert {str(path) for path in files if (tmp_path / "copy" / path).is_file()} <= held, folder
    assert {"Makefile", "MANIFEST.in", "tests/conftest.py", "src/hf_layerdrop/py.typed"} <= held
