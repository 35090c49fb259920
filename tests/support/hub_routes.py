"""The routes of the Hub on the loopback: what is asked of it by which path, and what it answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import yaml

from hub_connection import Connection
from hub_state import LFS_SUFFIXES, ROLES, USER, Commit, Refusal, Repo, tree_entry

_REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)??)"


class Handler(Connection):
    """One connection; ``routes``, below, says which path is whose."""

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
        self._json(folders + [tree_entry(commit, path) for path in paths])

    def paths_info(self, repo: str, revision: str) -> None:
        _, commit = self._commit(repo, revision)
        body = self._request.body.decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self._json([tree_entry(commit, path) for path in wanted if path in commit.files])

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
            oid = tree_entry(commit, path)["oid"] if path in commit.files and mode == "regular" else None
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
        entry = tree_entry(commit, path)
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


Handler.routes = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>.+)", Handler.create_branch),
    ("GET", rf"/api/models/{_REPO}/refs", Handler.refs),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", Handler.repo_info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", r"/lfs/verify", Handler.lfs_verify),
    ("GET HEAD", r"/stored/(?P<key>[0-9a-f]{64})", Handler.stored),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", rf"/api/models/{_REPO}", Handler.repo_info),
]
