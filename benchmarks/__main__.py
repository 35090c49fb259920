"""Run one benchmark by name; its options are the keyword arguments of its ``run``."""

from __future__ import annotations

import argparse
import inspect
import json
import pkgutil
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_")


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the benchmark, and print its numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        _add_command(commands, name)
    options = vars(parser.parse_args(arguments))
    name, as_json = options.pop("name"), options.pop("json")
    numbers = import_module(f"benchmarks.{name}").run(**options)
    if as_json:
        print(json.dumps({"benchmark": name, **numbers, **_machine()}))
    else:
        for key, value in numbers.items():
            print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    return 0


def _add_command(commands: Any, name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    command = commands.add_parser(name, help=(module.__doc__ or "").partition("\n")[0])
    command.add_argument("--json", action="store_true", help="print the numbers as one line of JSON, last")
    for option in inspect.signature(module.run).parameters.values():
        kind = type(option.default)
        flag = f"--{option.name.replace('_', '-')}"
        command.add_argument(flag, type=kind, default=option.default, help=f"default: {option.default}")


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"threads": torch.get_num_threads(), **versions}


if __name__ == "__main__":
    sys.exit(main())
