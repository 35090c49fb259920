"""Two processes choose one draft: rank 0 writes the texts and measures times, and both count rounds."""

from __future__ import annotations

from ranks import SUPPORT, found_by_ranks


def test_both_ranks_return_one_draft_and_one_speed() -> None:
    first, second = found_by_ranks(SUPPORT / "draft_ranks_worker.py")["draft"]
    assert first["found"] == second["found"]
    assert first["found"]["draft"]["num_assistant_tokens"] >= 1
    assert 0 < second["runs"] < first["runs"]  # which generates besides
