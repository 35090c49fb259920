"""The cards of what was trained, and of what was then cut: facts, and an example that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from huggingface_hub import ModelCard

from classifiers import model, rows, save_classifier  # noqa: F401
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.cli import run
from hf_layerdrop.reports.card_facts import labels_of

SAID = "---\nlicense: mit\nlanguage: en\nbase_model: someone/pretrained\ndatasets: [someone/other]\n---\n# A model\n"
FLAGS = ["--max_steps", "2", "--use_cpu", "--report_to", "none", "--eval-depths", "4,2", "--output_dir"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    base = save_classifier(folder / "base")
    (base / "README.md").write_text(SAID)
    lines = [f"{'good' if row % 3 else 'bad'} film,{int(row % 3 > 0)}" for row in range(20)]
    (folder / "rows.csv").write_text("\n".join(["sentence,label", *lines]))
    data = ["--task", "sst2", "--train-file", str(folder / "rows.csv"), "--validation-file", str(folder / "rows.csv")]
    words = ["train", "--model", str(base), "--layerdrop", "0.25", *data, *FLAGS, str(folder / "sst2")]
    assert run(words) == 0
    return folder / "sst2"


def facts_of(card: ModelCard) -> dict[str, str]:
    lines = re.findall(r"^\| (.+?) \| (.+?) \|$", card.text, re.MULTILINE)
    return dict(lines)


def example_of(card: ModelCard, folder: Path) -> list[dict]:
    """Run the example as a reader would who has the folder under its name."""
    code = re.search(r"```python\n(.+?)```", card.text, re.DOTALL)[1].replace(f'"{folder.name}"', repr(str(folder)))
    printed: list = []
    exec(code, {"print": printed.append})
    return printed[0]


def test_the_card_of_a_training_says_what_it_was(trained, capsys):
    card = ModelCard.load(trained / "README.md")
    facts = facts_of(card)
    assert facts["Trained from"] == "`base`"
    assert facts["Base model"] == "[someone/pretrained](https://huggingface.co/someone/pretrained)"
    assert facts["Licence"] == "mit"
    assert facts["Labels"] == "negative, positive"
    assert facts["Trained on"].startswith("20 rows of local-sst2: 2 steps, ")
    assert facts["LayerDrop rate in training"] == "0.25"
    assert f"transformers {transformers.__version__}" in facts["Made with"]
    assert (card.data.license, card.data.base_model) == ("mit", "someone/pretrained")
    assert card.data.datasets is None  # those of the base
    assert "20 rows, 95 % intervals in brackets" in card.text
    assert re.search(r"Times were measured on .+ threads?, \d+ rows a batch", card.text)
    assert "| **4** | **0-3** |" in card.text
    assert card.data.eval_results[0].dataset_type == "local-sst2"
    assert example_of(card, trained)[0]["label"] in ("negative", "positive")


def test_the_card_of_a_cut_has_it_from_there(trained, tmp_path):
    assert run(["prune", str(trained), "--keep-layers", "2", "--output", str(tmp_path / "small")]) == 0
    card = ModelCard.load(tmp_path / "small" / "README.md")
    facts = facts_of(card)
    assert facts["Source"] == "`sst2`"
    assert (facts["Licence"], facts["Labels"], facts["Kept layers (counted from 0)"]) == (
        "mit",
        "negative, positive",
        "0, 3",
    )
    assert card.data.base_model == "someone/pretrained"
    assert re.search(r"Times were measured on .+ threads?, \d+ rows a batch", card.text)
    assert example_of(card, tmp_path / "small")[0]["label"] in ("negative", "positive")


def test_the_next_line_can_be_typed(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["sweep", str(trained)]) == 0  # what train has printed last
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Next: hf-layerdrop prune ")
    assert run(last.split()[2:]) == 0
    shallow = next(tmp_path.rglob("*-pruned"))
    assert transformers.AutoConfig.from_pretrained(shallow).num_hidden_layers == 2
    assert saved_provenance(transformers.AutoConfig.from_pretrained(shallow))["keep_layers"] == {"encoder": [0, 3]}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({0: "bad", 1: "good"}, "bad, good"),
        ({0: "LABEL_0", 1: "LABEL_1"}, None),
        ({number: f"c{number}" for number in range(30)}, "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 20 more"),
        (["no", "mapping"], None),
        (None, None),
    ],
)
def test_labels_are_named_if_they_have_names(labels, said):
    assert labels_of({"id2label": labels}) == said
