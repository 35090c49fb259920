"""What strangers' files say, made harmless where it is shown: in Markdown, in code, on a terminal, in CSV.

HTML is escaped by the template (`html.py`).
"""

from __future__ import annotations

import json
import unicodedata

_LONGEST = 1000  # characters of one thing that is said in a table or a sentence
_MARKDOWN = {ord(mark): f"\\{mark}" for mark in "\\`*[]|~"} | {ord("<"): "&lt;", ord(">"): "&gt;", ord("&"): "&amp;"}
_BEGINS_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """Return a text as one line without what moves the cursor, or turns the direction of writing."""
    return " ".join(without_controls(text[:_LONGEST]).split()) + "…" * (len(text) > _LONGEST)


def without_controls(text: str) -> str:
    """Return a text as a terminal may have it: with its spaces and lines, and nothing else that is not seen."""
    return "".join(mark for mark in text.replace("\r", "") if mark in "\n\t" or _is_shown(mark))


def markdown(text: str) -> str:
    """Return a text that Markdown shows as it is: no link, picture, table, code or tag."""
    return plain(text).translate(_MARKDOWN)


def code(text: str) -> str:
    """Return a text in a span of code."""
    return f"`{plain(text).replace('`', chr(39)).replace('|', '/')}`"


def quoted(text: str) -> str:
    """Return a text as a literal of Python, on one line."""
    return json.dumps(plain(text), ensure_ascii=False)


def cell(value: object) -> object:
    """Return what a cell of a CSV file may hold: a text that a spreadsheet would take for a formula gets a quote."""
    if isinstance(value, str) and value.lstrip().startswith(_BEGINS_FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def _is_shown(mark: str) -> bool:
    return unicodedata.category(mark) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
