"""How long the Hub may have a caller wait: huggingface_hub sleeps for as long as an answer says, be it a day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from huggingface_hub import get_session

from hf_layerdrop.errors import HubError

_PATIENT = "hf_layerdrop.patient"
PATIENT = {_PATIENT: True}  # extensions of a request whose sender waits as it sees fit
LONGEST = 300  # seconds; the Hub's own limits of rate begin anew after so many


@contextmanager
def bounded_waits() -> Iterator[None]:
    """Refuse an answer of the Hub that asks to come back in more than `LONGEST` seconds, whoever sent the request.

    Raises:
        HubError: If there is one.
    """
    hooks = get_session().event_hooks["response"]

    def check(response: Any) -> None:  # a function of its own for each block, to be removed by
        _check(response)

    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def _check(response: Any) -> None:
    if response.request.extensions.get(_PATIENT):
        return
    wait = response.headers.get("Retry-After", "").strip()
    busy = response.status_code == HTTPStatus.TOO_MANY_REQUESTS or response.status_code >= 500
    if busy and wait.isascii() and wait.isdigit() and (len(wait) > 9 or int(wait) > LONGEST):
        raise HubError(
            f"The Hub is busy (HTTP status {response.status_code}) and asks to come back in {wait[:20]} seconds, which "
            "is not waited for: call again later, or log in with `hf auth login` for a higher limit."
        )
