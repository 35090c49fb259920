"""A Hub on the loopback: enough of its HTTP API for the real huggingface_hub client, with faults on demand.

    with HubServer() as hub:
        hub.add_repo("alice/tiny", {"config.json": b"{}"})
        hub.fail(r"/commit/", status=503)                # the next commit fails, and the one after it works
        HfApi(endpoint=hub.url, token=WRITE_TOKEN).upload_file(...)
        hub.repos["alice/tiny"].files()                  # what a reader of main sees
        hub.requests                                     # what was asked, with headers

huggingface_hub reads ``HF_ENDPOINT`` when it is imported, so client code in a subprocess gets ``hub.env(home)``, and
client code in this process a `monkeypatch` of ``huggingface_hub.constants.ENDPOINT`` (see ``use_in_process``).
Xet, the client's first choice where hf_xet is installed, is not spoken here: both ways switch it off.
"""

from __future__ import annotations

import os
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_routes import Handler
from hub_state import LFS_SUFFIXES, READ_TOKEN, WRITE_TOKEN, Fault, Repo, Request, digest

__all__ = ["READ_TOKEN", "WRITE_TOKEN", "HubServer"]


class HubServer:
    """The server with its repositories; a context manager, on a free port of the loopback."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS storage, by SHA-256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        # or "ignored", "short" (half of what was asked), "shifted" (another part), "endless" (more of it), "compressed"
        self.ranges: str | None = "honest"
        self.page: bytes | None = None  # if given, the answer to everything: of who stands between, and is no Hub
        self.storage: HubServer | None = None  # if given, LFS files are redirected there, as the Hub does to its CDN
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def env(self, home: str | os.PathLike[str], token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Return the environment of a subprocess whose Hub is this server, with an empty cache in ``home``."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {**kept, **own, **({"HF_TOKEN": token} if token else {})}

    def use_in_process(self, monkeypatch: Any, home: str | os.PathLike[str], token: str | None = WRITE_TOKEN) -> None:
        """Point the huggingface_hub of this process at this server until the test ends."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it has the endpoint of when it was first used
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(home, "hub")))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path(home, "token")))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    def add_repo(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repo:
        """Add a repository with one commit of ``files``."""
        repo = self.repos[name] = Repo(name, private)
        files = files or {".gitattributes": b""}
        repo.commit("initial commit", files, frozenset(path for path in files if path.endswith(LFS_SUFFIXES)))
        return repo

    def add_folder(self, name: str, folder: Path, *, private: bool = False) -> Repo:
        """Add a repository with one commit of everything in ``folder``."""
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.add_repo(name, files, private=private)

    def store(self, content: bytes) -> str:
        """Keep a file for whoever has its key, which is returned."""
        key = digest(content)
        self.objects[key] = content
        return key

    def fail(self, pattern: str, status: int | None, times: int = 1, **how: Any) -> None:
        """Answer the next ``times`` requests whose path matches with ``status``; see `Fault`."""
        self.faults.append(Fault(pattern, status, times, **how))

    def cut(self, pattern: str, times: int = 1, **how: Any) -> None:
        """Cut the connection of the next ``times`` requests whose path matches; see `Fault`."""
        self.fail(pattern, None, times, **how)

    def bytes_sent(self, pattern: str) -> int:
        """Count the bytes of answers to requests whose path matches."""
        return sum(request.sent for request in self.requests if re.search(pattern, request.path))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Use up one of the faults that match a request."""
        with self.lock:
            for fault in self.faults:
                due = fault.after is None or any(re.search(fault.after, request.path) for request in self.requests)
                if due and fault.times and fault.method in (None, method) and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None
