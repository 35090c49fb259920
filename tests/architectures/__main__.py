"""Walk over every model type that Auto classes know, and write docs/architectures.md."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_layerdrop.architectures.families import refusal

from .walk import PARTS, read_journal, walk


def main() -> int:
    """Walk over what the journal does not hold yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="only these model types")
    parser.add_argument("--journal", type=Path, default=Path("architectures.jsonl"), help="where to resume from")
    parser.add_argument("--again", nargs="*", default=[], metavar="STATUS", help="walk again over types of this status")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="only these of what is examined")
    parser.add_argument("--page", type=Path, help="write the page here")
    parser.add_argument("--data", type=Path, help="write the names of the types that were tried here, as Python")
    arguments = parser.parse_args()
    known = read_journal(arguments.journal)
    types = arguments.types or model_types()
    todo = [t for t in types if arguments.types or _wanted(known.get(t), arguments.parts, arguments.again)]
    for number, entry in enumerate(walk(todo, arguments.journal, arguments.parts), 1):
        print(f"{number}/{len(todo)} {entry['type']}: {entry['status']} {entry.get('reason', '')}", flush=True)
    walked = read_journal(arguments.journal)
    entries = {t: walked.get(t, {"type": t, "status": "not walked"}) for t in model_types()}
    print(Counter(entry["status"] for entry in entries.values()))
    from .page import render_data, render_page

    if arguments.data:
        arguments.data.write_text(render_data(entries), encoding="utf-8")
    if arguments.page:
        arguments.page.write_text(render_page(entries), encoding="utf-8")
    return 0


def _wanted(entry: dict[str, Any] | None, parts: Sequence[str], again: Sequence[str]) -> bool:
    """Tell whether the journal lacks an entry, or part of it, or is not to be believed."""
    if entry is None or entry["status"] in again:
        return True
    return refusal(entry["type"]) is None and any(part not in entry for part in parts if part != "checks")


def model_types() -> list[str]:
    """Return every model type that AutoModel, or an Auto class with a head, has a class for."""
    from transformers.models.auto import modeling_auto

    names = [name for name in vars(modeling_auto) if re.fullmatch(r"MODEL_(FOR_\w+_)?MAPPING_NAMES", name)]
    return sorted({model_type for name in names for model_type in getattr(modeling_auto, name)})


if __name__ == "__main__":
    sys.exit(main())
