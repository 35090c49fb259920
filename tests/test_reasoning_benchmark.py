"""The reasoning benchmark: its chains are right, its shares count what they say, and a journal is gone on with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import reasoning


def test_every_step_of_an_answer_follows_from_the_question() -> None:
    question, answer = reasoning.chains(50, 4, torch.Generator().manual_seed(0))
    for asked, written in zip(question, answer, strict=True):
        asked, written = (("".join(reasoning.SIGNS[sign] for sign in row)) for row in (asked, written))
        result, rest = int(asked[0]), asked[1:-1]
        steps = []
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            after = (result + int(sign + number)) % 10
            steps.append(f"{result}{sign}{number}={after}")
            result = after
        assert written == ";".join(steps) + "."
        assert asked.endswith("=")


def test_a_wrong_sign_makes_its_step_wrong_and_no_other() -> None:
    question, answer = reasoning.chains(4, 3, torch.Generator().manual_seed(0))

    def model(input_ids: torch.Tensor) -> SimpleNamespace:
        said = torch.cat([question, answer], 1)[:, 1:].clone()
        said[0, question.shape[1] - 1 + 6] = 0 if answer[0, 6] else 1  # the first sign of the second step
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, len(reasoning.SIGNS)))

    assert reasoning._steps_right(model, question, answer) == pytest.approx(11 / 12)


@pytest.mark.long
def test_a_journal_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    journal = str(tmp_path / "runs.jsonl")
    first = reasoning.run(short=True, journal=journal)
    said = capsys.readouterr().out
    assert "| LayerDrop 0.2 |" in said
    assert said.count("measured") == len(reasoning.ARMS)
    assert reasoning.run(short=True, journal=journal) == first
    assert "measured" not in capsys.readouterr().out
    assert {one["arm"] for one in first["runs"]} == set(reasoning.ARMS)
