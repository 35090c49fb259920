"""Walk over every model type that AutoModel knows, and write docs/architectures.md."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from .walk import read_journal, walk


def main() -> int:
    """Walk over what the journal does not hold yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="only these model types")
    parser.add_argument("--journal", type=Path, default=Path("architectures.jsonl"), help="where to resume from")
    parser.add_argument("--again", nargs="*", default=[], metavar="STATUS", help="walk again over types of this status")
    parser.add_argument("--page", type=Path, help="write the page here")
    arguments = parser.parse_args()
    known = read_journal(arguments.journal)
    types = arguments.types or model_types()
    todo = [t for t in types if arguments.types or t not in known or known[t]["status"] in arguments.again]
    for number, entry in enumerate(walk(todo, arguments.journal), 1):
        print(f"{number}/{len(todo)} {entry['type']}: {entry['status']} {entry.get('reason', '')}", flush=True)
    walked = read_journal(arguments.journal)
    entries = {t: walked.get(t, {"type": t, "status": "not walked"}) for t in model_types()}
    print(Counter(entry["status"] for entry in entries.values()))
    if arguments.page:
        from .page import render_page

        arguments.page.write_text(render_page(entries), encoding="utf-8")
    return 0


def model_types() -> list[str]:
    """Return every model type that AutoModel has a class for."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


if __name__ == "__main__":
    sys.exit(main())
