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

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN = "hf_loopbackWriteToken"
READ_TOKEN = "hf_loopbackReadToken"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER = "alice"
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".pt")

_REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)??)"


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
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
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
        key = _digest(content)
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


class _Handler(BaseHTTPRequestHandler):
    """One connection; routes are listed in ``_ROUTES``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *_: Any) -> None:
        """Stay silent: `HubServer.requests` is the log."""

    def _handle(self) -> None:
        body = self._read_body()
        url = urlsplit(self.path)
        path, self._query = unquote(url.path), parse_qs(url.query)
        self._fault = self.hub.take_fault(self.command, path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._request = Request(self.command, path, headers, body)
        self.hub.requests.append(self._request)
        try:
            if self.hub.page is not None:
                self._answer(self.hub.page, 200, {"Content-Type": "text/html"})
            elif self._fault and not self._fault.after_handling and self._fault.after_bytes is None:
                self._break(self._fault)
            else:
                self._route(path)
        except Refusal as refusal:
            self._refuse(refusal)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _route(self, path: str) -> None:
        for method, pattern, function in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                function(self, **found.groupdict())
                return
        raise Refusal(404, f"no such route: {self.command} {path}")

    def _break(self, fault: Fault) -> None:
        if fault.status is None:
            self._cut()
        else:
            raise Refusal(fault.status, "injected fault", **(fault.body or {}))

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # answers

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": refusal.message, **refusal.body.pop("headers", {})}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._answer(json.dumps({"error": refusal.message, **refusal.body}).encode(), refusal.status, headers)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        fault = self._fault
        if fault and fault.after_handling:
            self._fault = None
            self._break(fault)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.after_bytes is not None:
            body = body[: fault.after_bytes]
        self.wfile.write(body)
        self._request.sent = len(body)
        if fault and fault.after_bytes is not None:
            self._cut()

    # who asks, and for what

    def _role(self) -> str | None:
        """Return what the caller's token may do; None without a token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in ROLES:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return ROLES[token]

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        role = self._role()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and role is None):
            # as on the Hub, a stranger cannot tell a private repository from a missing one
            raise Refusal(404 if role else 401, "Repository not found", "RepoNotFound")
        if write and (role != "write" or not name.startswith(f"{USER}/")):
            raise Refusal(403, f"You don't have the rights to write to {name}")
        return repo

    def _commit(self, repo: str, revision: str | None) -> tuple[Repo, Commit]:
        found = self._repo(repo)
        commit = found.at(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, commit

    def whoami(self) -> None:
        role = self._role()
        if role is None:
            raise Refusal(401, "Invalid username or password.")
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create_repo(self) -> None:
        wanted = json.loads(self._request.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        role = self._role()
        if role is None:
            raise Refusal(401, "Invalid username or password.")
        if role != "write" or not name.startswith(f"{USER}/"):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        url = f"{self.hub.url}/{name}"
        with self.hub.lock:
            if name in self.hub.repos:
                raise Refusal(409, "You already created this model repo", url=url, name=name)
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.add_repo(name, private=bool(private))
        self._json({"url": url, "name": name})

    def create_branch(self, repo: str, revision: str) -> None:
        found = self._repo(repo, write=True)
        if revision in found.branches:
            raise Refusal(409, "Reference already exists")
        start = found.at(json.loads(self._request.body or b"{}").get("startingPoint") or "main")
        found.branches[revision] = start.oid
        self._json({})

    def refs(self, repo: str) -> None:
        branches = self._repo(repo).branches
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches.items()]
        self._json({"branches": listed, "tags": [], "converts": []})

    def repo_info(self, repo: str, revision: str | None = None) -> None:
        found, commit = self._commit(repo, revision)
        self._json(
            {
                "id": repo,
                "modelId": repo,
                "sha": commit.oid,
                "private": found.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in commit.files],
            }
        )

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        _, commit = self._commit(repo, revision)
        prefix = f"{folder}/" if folder else ""
        paths = [path for path in commit.files if path.startswith(prefix)]
        if folder and not paths:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        if self._query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            deeper = {prefix + path[len(prefix) :].split("/")[0] for path in paths if "/" in path[len(prefix) :]}
            folders = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(deeper)]
            paths = [path for path in paths if "/" not in path[len(prefix) :]]
        else:
            folders = []
        self._json(folders + [_entry(commit, path) for path in paths])

    def paths_info(self, repo: str, revision: str) -> None:
        _, commit = self._commit(repo, revision)
        body = self._request.body.decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self._json([_entry(commit, path) for path in wanted if path in commit.files])

    # uploads

    def validate_yaml(self) -> None:
        errors = _card_errors(json.loads(self._request.body)["content"])
        self._json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        found = self._repo(repo, write=True)
        commit = found.at(revision) or found.at("main")
        modes = []
        for file in json.loads(self._request.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = _entry(commit, path)["oid"] if path in commit.files and mode == "regular" else None
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": modes})

    def lfs_batch(self, repo: str) -> None:
        self._repo(repo, write=True)
        answers = []
        for wanted in json.loads(self._request.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                verify = {"href": f"{self.hub.url}/lfs/verify"}
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}, "verify": verify}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self._request.body).hexdigest() != oid:
            raise Refusal(400, "the content does not have this SHA-256")
        self.hub.objects[oid] = self._request.body
        self._json({})

    def lfs_verify(self) -> None:
        wanted = json.loads(self._request.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "object not found")
        self._json({})

    def commit(self, repo: str, revision: str) -> None:
        """Apply all operations of an ndjson body at once, or none."""
        found = self._repo(repo, write=True)
        lines = [json.loads(line) for line in self._request.body.splitlines() if line]
        header = lines[0]["value"]
        with self.hub.lock:
            parent = found.at(revision)
            if parent is None:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if header.get("parentCommit") not in (None, parent.oid):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files, lfs = self._applied(parent, lines[1:])
            pull_request = "create_pr" in self._query
            number = 1 + sum(name.startswith("refs/pr/") for name in found.branches)
            commit = found.commit(header["summary"], files, lfs, f"refs/pr/{number}" if pull_request else revision)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}"}
        self._json(
            {**answer, "pullRequestUrl": f"{self.hub.url}/{repo}/discussions/{number}" if pull_request else None}
        )

    def _applied(self, parent: Commit, operations: list[dict[str, Any]]) -> tuple[dict[str, bytes], frozenset[str]]:
        files, lfs = dict(parent.files), set(parent.lfs)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                files[path] = base64.b64decode(value["content"])
                lfs.discard(path)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"LFS object of {path} was not uploaded")
                files[path] = self.hub.objects[value["oid"]]
                lfs.add(path)
            elif operation["key"] == "deletedFile":
                files.pop(path, None)
            else:
                raise Refusal(400, f"unknown operation {operation['key']}")
        return files, frozenset(lfs & files.keys())

    # downloads

    def resolve(self, repo: str, revision: str, path: str) -> None:
        _, commit = self._commit(repo, revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:  # of which a client takes note, by the commit
            raise Refusal(404, "Entry not found", "EntryNotFound", headers=headers)
        body = commit.files[path]
        entry = _entry(commit, path)
        headers["ETag"] = f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"'
        if "lfs" in entry:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(body))}
        if "lfs" in entry and self.hub.storage is not None:
            key = self.hub.storage.store(body)
            self._answer(b"", 302, {**headers, "Location": f"{self.hub.storage.url}/stored/{key}"})
            return
        self._send_part(body, headers)

    def stored(self, key: str) -> None:
        """Send an LFS file as a CDN does: to whoever has the link, with a mark of its own."""
        self._send_part(self.hub.objects[key], {"ETag": f'"cdn-{key[:8]}"', "Accept-Ranges": "bytes"})

    def _send_part(self, body: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD" or self.hub.ranges == "ignored":
            self._answer(body, 200, headers)
            return
        first, last = _parse_range(wanted, len(body))
        if self.hub.ranges == "short":
            last = max(first, (first + last) // 2)
        if self.hub.ranges == "shifted":
            first, last = first + 1, last + 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        if self.hub.ranges == "endless":
            self._answer_without_end(body[first : last + 1], headers)
            return
        if self.hub.ranges == "compressed":
            headers["Content-Encoding"] = "gzip"
        self._answer(body[first : last + 1], 206, headers)

    def _answer_without_end(self, body: bytes, headers: dict[str, str]) -> None:
        self.close_connection = True
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # until the client has had enough
            while True:
                self.wfile.write(body)
                self._request.sent += len(body)
                body = bytes(2**20)


@lru_cache(maxsize=256)  # bytes remember their hash, so that of a large file the second request is answered at once
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=256)
def _blob_oid(content: bytes) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


def _entry(commit: Commit, path: str) -> dict[str, Any]:
    """Describe a file as the Hub's tree does."""
    content = commit.files[path]
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_oid(content)}
    if path in commit.lfs:
        entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 134}
    return entry


def _parse_range(header: str, size: int) -> tuple[int, int]:
    """Read ``bytes=a-b``, ``bytes=a-`` or ``bytes=-n`` as first and last index."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not found or found.groups() == ("", ""):
        raise Refusal(416, f"cannot read the range {header}")
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size - 1
    if int(first) >= size:
        raise Refusal(416, f"the range {header} lies behind the end at {size}")
    return int(first), min(int(last) if last else size - 1, size - 1)


def _card_errors(content: str) -> list[str]:
    """Check a card's metadata roughly as the Hub does."""
    block = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(block.group(1)) if block else {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    errors = []
    for model in data.get("model-index", []):
        if not model.get("name"):
            errors.append('"model-index[0].name" is required')
        for result in model.get("results", []):
            errors += [f"task.{key} is required" for key in ("type",) if not result.get("task", {}).get(key)]
            errors += [f"dataset.{key} is required" for key in ("name", "type") if not result["dataset"].get(key)]
            errors += ["metrics.value is required" for metric in result["metrics"] if metric.get("value") is None]
    if "base_model" in data and str(data["base_model"]).startswith(("/", ".")):
        errors.append('"base_model" is not the id of a model')
    return errors


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>.+)", _Handler.create_branch),
    ("GET", rf"/api/models/{_REPO}/refs", _Handler.refs),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.repo_info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", r"/lfs/verify", _Handler.lfs_verify),
    ("GET HEAD", r"/stored/(?P<key>[0-9a-f]{64})", _Handler.stored),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", rf"/api/models/{_REPO}", _Handler.repo_info),
]
