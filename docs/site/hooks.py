"""What the site makes of files beside docs/: pages of their own, and links to the repository for the rest."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Pages that readers of the repository expect at its root: their place on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "BENCHMARKS.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root, and our own list of the interface."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=_interface()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    root_page = {place: source for source, place in PAGES.items()}.get(page.file.src_uri)
    folder = "" if root_page else "docs"

    def there(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        target = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which is not in the repository")
        if target in PAGES:
            return PAGES[target] + anchor
        if target.startswith("docs/") and files.get_file_from_path(target.removeprefix("docs/")):
            return target.removeprefix("docs/") + anchor
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{config.repo_url.rstrip('/')}/{kind}/main/{target}{anchor}"

    return _LINK.sub(there, markdown)


def _interface() -> str:
    """List every public name, by what it is for; a name that is missing here fails the build."""
    import sys

    sys.path.insert(0, str(ROOT / "src"))
    import hf_layerdrop

    homes: dict[str, list[str]] = getattr(hf_layerdrop, "_HOMES")  # noqa: B009
    sections = [section.split(":") for section in _SECTIONS]
    lines = ["# Python interface", "", "Everything here is imported from `hf_layerdrop` itself.", ""]
    shown: set[str] = set()
    for title, prefixes in sections:
        modules = [module for module in homes if module.startswith(tuple(prefixes.split())) and module not in shown]
        shown |= set(modules)
        lines += [f"## {title}", ""]
        lines += [f"::: hf_layerdrop.{module}.{name}\n" for module in modules for name in homes[module]]
    if missing := sorted(set(homes) - shown):
        raise KeyError(f"docs/site/hooks.py has no section for {', '.join(missing)}")
    return "\n".join(lines)


_SECTIONS = (
    "Put LayerDrop in:samplers injection",
    "Models:models",
    "Take a sub-network out:pruning",
    "Measure:results evaluation checkpoints",
    "Choose layers:search",
    "Train:training tasks distillation healing",
    "Save, publish, serve, show:hub app",
    "Reports:reports",
    "Errors:errors",
    "Demo:cli",
)
