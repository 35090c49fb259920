"""Collect wheels for a GPU machine that reaches no registry: ``python -m benchmarks.gpu.wheels FOLDER --python 3.12``.

Torch and what only torch brings are not among them: such a machine has them. What is collected can be carried along
with the source tree, and is put in place there by ``make gpu WHEELS=FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# What the parts and their tests import beside torch. The last needs torch, and is taken without what it needs.
WANTED = ("transformers", "huggingface_hub", "pytest", "hypothesis")
WITHOUT_NEEDS = ("accelerate",)
LIMIT_MB = 60
PLATFORMS = [f"manylinux_2_{number}_x86_64" for number in range(39, 4, -1)] + ["manylinux2014_x86_64"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Resolve, download, and say how large it is; more than the limit is an error that names the largest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the wheels go")
    parser.add_argument("--python", default="3.12", help="the machine's Python (default: %(default)s)")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME", help="more: datasets, peft, ...")
    parser.add_argument("--have", nargs="*", default=[], metavar="NAME", help="packages that the machine has already")
    parser.add_argument("--limit-mb", type=float, default=LIMIT_MB, help="at most so much (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if old := sorted(path.name for path in options.folder.iterdir()):
        parser.error(
            f"{options.folder} is not empty ({old[0]}, ...): name a new folder, so that no wheel is there twice."
        )
    for_machine = ["--only-binary=:all:", "--python-version", options.python, "--implementation", "cp"]
    for_machine += [word for platform in PLATFORMS for word in ("--platform", platform)]
    names = [
        name for name in _resolved(for_machine, options.also) if name.partition("==")[0] not in {*options.have, "torch"}
    ]
    _pip("download", "--no-deps", "--dest", str(options.folder), *for_machine, *names, *WITHOUT_NEEDS)
    sizes = {path.name: path.stat().st_size / 1e6 for path in options.folder.iterdir()}
    total = sum(sizes.values())
    print(f"{len(sizes)} wheels for Python {options.python}, {total:.1f} MB, in {options.folder}")
    if total > options.limit_mb:
        largest = ", ".join(f"{name} ({sizes[name]:.0f} MB)" for name in sorted(sizes, key=sizes.__getitem__)[:-4:-1])
        raise SystemExit(
            f"That is over {options.limit_mb} MB. The largest: {largest}; name what the machine has in --have."
        )
    return 0


def _resolved(for_machine: Sequence[str], also: Sequence[str]) -> list[str]:
    """Return what the packages need, with the versions that fit together on that machine."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        _pip(
            "install", "--dry-run", "--quiet", "--target", folder, "--report", str(report), *for_machine, *WANTED, *also
        )
        found = json.loads(report.read_text())["install"]
    return [f"{one['metadata']['name'].lower()}=={one['metadata']['version']}" for one in found]


def _pip(*words: str) -> None:
    if code := subprocess.run([sys.executable, "-m", "pip", *words]).returncode:
        raise SystemExit(f"pip {words[0]} ended with {code}; its message stands above.")


if __name__ == "__main__":
    sys.exit(main())
