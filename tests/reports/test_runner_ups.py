"""Runner-ups of a search: what they score on separate data, and how large they are, in the file and in the report."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from conftest import batch_for, build
from hf_layerdrop import search_layers
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.search.selection import Scored, Selection
from report_pages import selection, write


def labelled(seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for("BertForSequenceClassification", seed)
    return {**batch, "labels": torch.arange(len(batch["input_ids"])) % 2}


def test_each_has_its_parameters_and_its_score_on_separate_data() -> None:
    model = build("BertForSequenceClassification")
    rows, separate = ([labelled(seed)] for seed in (1, 2))
    found = search_layers(
        model, rows, metric="loss", strategy="exhaustive", depth=2, test_dataset=separate, progress=False
    )
    sets = [found.keep_layers, *(other.keep_layers for other in found.runner_ups)]
    alone = evaluate_depths(model, separate, depths=sets, metric="loss", progress=False)
    assert len({one.metrics["loss"] for one in alone}) == len(sets) == 6
    expected = [(one.metrics["loss"], one.parameters) for one in alone]
    assert [(other.test_score, other.parameters) for other in found.runner_ups] == expected[1:]
    assert found.test_score == expected[0][0]
    assert Selection.from_dict(found.to_dict()) == found


def test_a_selection_of_before_is_read() -> None:
    values = selection().to_dict()
    values["runner_ups"] = [{"keep_layers": {"encoder": [0, 1]}, "score": 0.5}]
    assert Selection.from_dict(values).runner_ups == (Scored({"encoder": (0, 1)}, 0.5, None, None),)


def test_the_report_has_a_row_for_each(tmp_path: Path) -> None:
    ups = (Scored({"encoder": (0, 1, 2)}, 0.74, 2_000_000, 0.7), Scored({"encoder": (0, 1)}, 0.6))
    text = write(tmp_path / "out.html", selections=[selection(runner_ups=ups)]).read_text(encoding="utf-8")
    table = text[text.index('class="runner-ups"') :].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows == [
        ["runner-ups", "accuracy", "on separate data", "parameters"],
        ["0-2", "0.7400", "0.7000", "2M"],
        ["0, 1", "0.6000", "-", "-"],
    ]
