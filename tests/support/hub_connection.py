"""A connection to the Hub on the loopback: how requests are read, faults happen, and answers go out."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import Fault, Refusal, Request


class Connection(BaseHTTPRequestHandler):
    """One connection; routes are listed in ``routes``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    routes: ClassVar[list[tuple[str, str, Callable[..., None]]]] = []  # methods, path, and what answers

    @property
    def hub(self) -> Any:
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
        for method, pattern, function in self.routes:
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
