"""Read parts of a weight file on the Hub: range requests through huggingface_hub's own client and authentication."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any

from hf_layerdrop.checkpoints.headers import TensorInfo, header_length, parse_header
from hf_layerdrop.checkpoints.weight_files import CHUNK, StoredTensor, stored_tensors
from hf_layerdrop.errors import CheckpointError

_TRIES = 5  # in a row that bring nothing
_SECONDS_BETWEEN = 1.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class RangesIgnored(Exception):
    """The server sends the whole file, whatever part of it is asked for."""


class RemoteFile:
    """One weight file of a repository at a commit.

    Every answer must be of the same file: its ETag and its size may not change from one request to the next.
    """

    def __init__(self, repo_id: str, name: str, commit: str, token: str | bool | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self.name = name
        self._shown = PurePosixPath(repo_id, name)
        self._url = hf_hub_url(repo_id, name, revision=commit)
        # identity: of compressed content a range would be a range of something else
        self._headers = {**build_hf_headers(token=token, library_name="hf_layerdrop"), "Accept-Encoding": "identity"}
        self._size: int | None = None
        self._etag: str | None = None

    def read_header(self) -> dict[str, StoredTensor]:
        """Read where the tensors of the file lie; see `read_layout`."""
        return stored_tensors(*self.read_layout(), self.name)

    def read_layout(self) -> tuple[dict[str, TensorInfo], int]:
        """Read and check the header of the file; return also at which of its bytes the data begins.

        Raises:
            RangesIgnored: The server has no ranges.
            CheckpointError: The header is corrupt, or could not be fetched.
        """
        raw = b"".join(self.stream(self.name, 0, 8))
        size = self._size or 0
        data_begin = 8 + header_length(raw, size, self._shown)
        header = b"".join(self.stream(self.name, 8, data_begin))
        return parse_header(header, size, self._shown), data_begin

    def stream(self, _name: str, begin: int, end: int) -> Iterator[bytes]:
        """Fetch a part of the file in chunks; where a connection breaks off, the next one goes on.

        Raises:
            RangesIgnored: The server has no ranges.
            CheckpointError: The file changed meanwhile, or the server gave up on it.
        """
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        failures, reason = 0, "it sent nothing"
        while begin < end:
            try:
                with self._answer(begin, end) as response:
                    for chunk in response.iter_bytes(CHUNK):
                        part = chunk[: end - begin]
                        begin, failures = begin + len(part), 0 if part else failures
                        yield part
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                reason = type(error).__name__
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

    @contextmanager
    def _answer(self, begin: int, end: int) -> Iterator[Any]:
        from huggingface_hub import constants
        from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

        with http_stream_backoff(
            "GET",
            self._url,
            headers={**self._headers, "Range": f"bytes={begin}-{end - 1}"},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),  # `stream` resumes
        ) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if begin == 0:  # of an empty file there is no first byte
                    header_length(b"", 0, self._shown)
                raise self._changed()
            hf_raise_for_status(response)
            self._check(response, begin)
            yield response

    def _check(self, response: Any, begin: int) -> None:
        """Check that an answer is the part that was asked for, of the same file as before."""
        if response.status_code == 200:
            raise RangesIgnored(self._url)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != begin:
            raise CheckpointError(
                f"The Hub answered with another part of {str(self._shown)!r} than the one from byte {begin} on, so "
                "nothing was kept: call again, or load the whole model and cut it with prune_layers."
            )
        etag, size = _etag_of(response), int(found[3])
        if self._size is not None and (size, etag) != (self._size, self._etag):
            raise self._changed()
        self._size, self._etag = size, etag

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
