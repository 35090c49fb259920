"""What the Hub on the loopback holds: repositories, requests, faults, and who may do what."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

WRITE_TOKEN = "hf_loopbackWriteToken"
READ_TOKEN = "hf_loopbackReadToken"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER = "alice"
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".pt")


@dataclass
class Commit:
    """One state of a repository: every file of it, whole."""

    oid: str
    title: str
    files: dict[str, bytes]
    lfs: frozenset[str]


@dataclass
class Repo:
    """A model repository: its commits in order, and the branches that point at them."""

    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(
        self, title: str, files: dict[str, bytes], lfs: frozenset[str] = frozenset(), branch: str = "main"
    ) -> Commit:
        """Add one commit to a branch."""
        oid = hashlib.sha1(f"{self.name} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files, lfs)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        """Find the commit that a branch, pull request or hash names."""
        return self.commits.get(self.branches.get(revision, revision))

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files at a revision, by path."""
        found = self.at(revision)
        return {} if found is None else found.files


@dataclass
class Request:
    """A request as it came in, noted before it is answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    sent: int = 0  # bytes of the answer's body


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose path matches.

    ``status`` None cuts the connection: at once, or after ``after_bytes`` of the answer's body. ``after_handling`` does
    the work first and loses only the answer. ``after`` waits until a path that matches it was asked for.
    """

    pattern: str
    status: int | None
    times: int
    method: str | None = None
    after_bytes: int | None = None
    after_handling: bool = False
    after: str | None = None
    body: dict[str, Any] | None = None


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@lru_cache(maxsize=256)  # bytes remember their hash, so that of a large file the second request is answered at once
def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=256)
def _blob_oid(content: bytes) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


def tree_entry(commit: Commit, path: str) -> dict[str, Any]:
    """Describe a file as the Hub's tree does."""
    content = commit.files[path]
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_oid(content)}
    if path in commit.lfs:
        entry["lfs"] = {"oid": digest(content), "size": len(content), "pointerSize": 134}
    return entry
