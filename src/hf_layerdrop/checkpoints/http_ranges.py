"""Read parts of a weight file on the Hub: range requests through huggingface_hub's own client and authentication.

It has readers of its own, and none that fits: `HfFileSystem` reads ahead and holds each range whole, its reader of
headers does not say where tensors lie, and neither stops where a server sends more than it was asked for.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers

from hf_layerdrop.checkpoints.headers import TensorInfo, read_header
from hf_layerdrop.checkpoints.hub_waits import PATIENT
from hf_layerdrop.errors import CheckpointError

_CHUNK = 8 * 2**20
_TRIES = 5  # in a row that bring nothing
_SECONDS_BETWEEN = 1.0  # then twice that, and so on; whatever Retry-After says, which may be a day
_LONGEST_HEADER = 100_000_000  # the limit of safetensors itself
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class RangesIgnored(CheckpointError):
    """The server sends the whole file, whatever part of it is asked for."""


class _Busy(HTTPError):
    """An answer that another try may better."""


class RemoteFile:
    """One weight file of a repository at a commit.

    Every answer must be of the same file: its ETag and its size may not change from one request to the next.
    """

    def __init__(self, repo_id: str, name: str, commit: str, token: str | bool | None) -> None:
        self._shown = PurePosixPath(repo_id, name)
        self._url = hf_hub_url(repo_id, name, revision=commit)
        # identity: of compressed content a range would be a range of something else
        self._headers = {**build_hf_headers(token=token, library_name="hf_layerdrop"), "Accept-Encoding": "identity"}
        self._version: tuple[int, str | None] | None = None

    def read_header(self) -> dict[str, TensorInfo]:
        """Read the header of the file, by safetensors' own reader: of a file as long, which has nothing but the header.

        Raises:
            RangesIgnored: The server has no ranges.
            CheckpointError: The header is corrupt, or could not be fetched.
        """
        raw = b"".join(self.stream(0, 8))
        size = self._version[0] if self._version else 0
        length = int.from_bytes(raw, "little")
        if length <= min(size - 8, _LONGEST_HEADER):  # else safetensors has a word for it
            raw += b"".join(self.stream(8, 8 + length))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, self._shown.name)
            file.write_bytes(raw)
            os.truncate(file, size)  # what was not written takes no space
            return read_header(file, self._shown)

    def stream(self, begin: int, end: int) -> Iterator[bytes]:
        """Fetch a part of the file in chunks; where a connection breaks off, the next one goes on.

        Raises:
            RangesIgnored: The server has no ranges.
            CheckpointError: The file changed meanwhile, or the server gave up on it.
        """
        failures = 0
        while begin < end:
            reason = "it sent nothing"
            try:
                for part in self._request(begin, end):
                    begin, failures = begin + len(part), 0
                    yield part
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                reason = str(error) if isinstance(error, _Busy) else type(error).__name__
            if begin < end:
                failures += 1
                self._wait(failures, reason)

    def _wait(self, failures: int, reason: str) -> None:
        if failures >= _TRIES:
            raise CheckpointError(
                f"The file {str(self._shown)!r} could not be fetched from the Hub ({reason}, {failures} times in a "
                "row), so nothing of it was kept: check the network, and call again."
            )
        if failures > 1:  # a connection that brought something before it broke off is resumed at once
            time.sleep(_SECONDS_BETWEEN * 2 ** (failures - 2))

    def _request(self, begin: int, end: int) -> Iterator[bytes]:
        """Send one request, and yield of its answer no more than was asked for, however much there is."""
        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", self._url, headers=headers, timeout=timeout, extensions=PATIENT) as response:
            self._check(response, begin)
            is_exact = response.headers.get("Content-Length") == str(end - begin)
            for chunk in response.iter_raw(_CHUNK):
                part = chunk[: end - begin]
                begin += len(part)
                yield part
                if begin == end and not is_exact:  # else it ends by itself, and the connection serves again
                    return

    def _check(self, response: Any, begin: int) -> None:
        """Check that an answer is the part that was asked for, of the same file as before; its body is not read."""
        status = response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Busy(f"HTTP status {status}")
        if status >= HTTPStatus.BAD_REQUEST:
            raise HfHubHTTPError(f"HTTP status {status}", response=response)
        if status == HTTPStatus.OK:
            raise RangesIgnored(f"The Hub sends {str(self._shown)!r} whole, and no part of it: call again.")
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if found is None or int(found[1]) != begin or encoded:
            raise CheckpointError(
                f"The Hub answered with another part of {str(self._shown)!r} than the one from byte {begin} on, so "
                "nothing was kept: call again, or load the whole model and cut it with prune_layers."
            )
        version = int(found[3]), _etag_of(response)
        if self._version not in (None, version):
            raise self._changed()
        self._version = version

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"The file {str(self._shown)!r} changed on the Hub while it was fetched, so nothing of it was kept: "
            "call again."
        )


def _etag_of(response: Any) -> str | None:
    """Return the mark of a file's content: the Hub's own, or else that of whoever serves it after a redirect."""
    answers = [*response.history, response]
    linked = [answer.headers["X-Linked-ETag"] for answer in answers if "X-Linked-ETag" in answer.headers]
    etag = linked[0] if linked else response.headers.get("ETag")
    return etag.removeprefix("W/").strip('"') if etag else None
