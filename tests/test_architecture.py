"""The folders of the package, from bottom to top, and what else its shape promises."""

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
# From bottom to top: a folder imports only from folders before it. docs/architecture.md says what each is for.
FOLDERS = (
    "errors",
    "compat",
    "architectures",
    "checkpoints",
    "samplers",
    "injection",
    "pruning",
    "models",
    "results",
    "evaluation",
    "tasks",
    "search",
    "reports",
    "training",
    "hub",
    "distillation",
    "healing",
    "app",
    "cli",
)
EXEMPT = ("__init__", "__main__")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def modules() -> list[Path]:
    return [path for path in MODULES.values() if path.stem not in EXEMPT or path.parent != ROOT]


def home(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_by(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_layerdrop":
            module = (node.module or "").removeprefix("hf_layerdrop").removeprefix(".")
            whole = {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in MODULES else module for name in whole}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("hf_layerdrop.")]
            found |= {name.removeprefix("hf_layerdrop.") for name in names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_only_from_folders_below_it(path: Path) -> None:
    own = home(path)
    assert own in FOLDERS, f"give {own} its place"
    others = {name.split(".")[0] for name in imported_by(path)} - {own}
    assert others <= set(FOLDERS[: FOLDERS.index(own)]), "an import goes upwards, or of the package itself"


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {name: imported_by(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    imports = {name: others for name, others in imports.items() if name}
    while leaves := [name for name, others in imports.items() if not others & set(imports)]:
        for name in leaves:
            del imports[name]
    assert not imports, "each of these is in a circle, or imports one that is"


def test_the_root_holds_few_modules() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 7
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} <= set(FOLDERS)


def test_the_tests_have_the_same_folders() -> None:
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert set(FOLDERS) - {"errors", "compat"} <= folders


def test_cutting_and_serving_do_not_import_trainer() -> None:
    """It imports PEFT and bitsandbytes where they are installed, which takes seconds."""
    code = (
        "import sys, hf_layerdrop.models.auto, hf_layerdrop.hub.save, hf_layerdrop.hub.serve; "
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
        if path.name != "families.py":
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
    for folder in ("tests", "benchmarks", "examples", "docs", "reproduction", "src/hf_layerdrop"):
        files = {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy" / folder).rglob("*.*")}
        assert {str(path) for path in files if (tmp_path / "copy" / path).is_file()} <= held, folder
    assert {"Makefile", "MANIFEST.in", "tests/conftest.py", "src/hf_layerdrop/py.typed"} <= held
