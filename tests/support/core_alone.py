"""What the package does with its core alone: train, measure, cut, load, save, push, serve; what it says of the rest.

For an environment into which ``pip install .`` has installed: ``python tests/support/core_alone.py``. Where more is
installed, ``--blocked`` hides it from all imports first.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_layerdrop.errors import EXTRAS, MissingExtraError
from hub_server import WRITE_TOKEN, HubServer

WORDS = ["the", "a", "film", "is", "was", "not", "very", "good", "bad", "dull", "warm", "and"]
HIDDEN = {name for names in EXTRAS.values() for name in names}
HIDDEN |= {"bitsandbytes", "lightning", "pandas", "peft", "sentence_transformers", "trl"}


class Hiding:
    """A finder of modules that does not find those of the extras."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, *args: Any) -> Any:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def main(folder: Path) -> None:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    rows = [row(tokenizer, number) for number in range(32)]
    whole = folder / "whole"
    results = train(rows, whole)
    tokenizer.save_pretrained(whole)
    load(rows, whole)
    publish(whole, folder, results)
    command_line(whole, folder)
    assert not HIDDEN & {name.partition(".")[0] for name, module in sys.modules.items() if module}


def row(tokenizer: Any, number: int) -> dict[str, Any]:
    words = [WORDS[(number * step) % len(WORDS)] for step in range(1, 9)]
    return {**tokenizer(" ".join(words)), "labels": int("good" in words)}


def train(rows: list[dict[str, Any]], whole: Path) -> list[Any]:
    """Train with LayerDrop on a list of rows, and measure two depths by a metric of one's own."""
    import transformers

    from hf_layerdrop import LayerDropBertForSequenceClassification, evaluate_depths

    transformers.set_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=5 + len(WORDS), initializer_range=0.3, **sizes)
    model = LayerDropBertForSequenceClassification(config, layerdrop=0.5)
    arguments = transformers.TrainingArguments(
        str(whole.parent / "run"),
        max_steps=6,
        logging_steps=2,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=share_of_right_ones
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer.train()
    assert any((before[name] != weight).any() for name, weight in model.state_dict().items())
    logged = next(log for log in trainer.state.log_history if "layerdrop_rate" in log)
    assert logged["layerdrop_layers_used"] < 4
    results = evaluate_depths(trainer, depths=[4, 2], progress=False)
    assert [set(result.metrics) for result in results] == [{"right", "loss"}] * 2
    (loss,) = evaluate_depths(model, rows, depths=[2], metric="loss", progress=False)
    assert math.isclose(loss.metrics["loss"], results[1].metrics["loss"], rel_tol=1e-5)
    assert loss.metrics["loss"] != results[0].metrics["loss"]
    by_name = refusal(evaluate_depths, model, rows, depths=[2], metric="accuracy")
    assert 'pip install "hf-layerdrop[tasks]"' in by_name
    trainer.save_model(str(whole))
    return results


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return what a call says that needs an extra."""
    try:
        function(*args, **kwargs)
    except MissingExtraError as error:
        return str(error)
    return "nothing"


def share_of_right_ones(evaluated: Any) -> dict[str, float]:
    return {"right": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def load(rows: list[dict[str, Any]], whole: Path) -> None:
    """Load two layers, which are those of the whole model that was cut."""
    import torch

    from hf_layerdrop import AutoLayerDropModelForSequenceClassification, prune_layers

    auto = AutoLayerDropModelForSequenceClassification
    batch = {name: torch.tensor([row[name] for row in rows[:4]]) for name in ("input_ids", "attention_mask")}
    deep, two, others = (auto.from_pretrained(whole, keep_layers=keep).eval() for keep in (None, 2, [1, 2]))
    cut = auto.from_pretrained(whole).eval()
    prune_layers(cut, keep_layers=2)
    expected = cut(**batch).logits
    assert torch.equal(two(**batch).logits, expected)
    assert not torch.equal(deep(**batch).logits, expected)
    assert not torch.equal(others(**batch).logits, expected)


def publish(whole: Path, folder: Path, results: list[Any]) -> None:
    """Save and push two layers, with a card that says why it has no plot, and serve them with plain transformers."""
    import transformers

    import hf_layerdrop

    saved = hf_layerdrop.save_pruned(whole, folder / "two", keep_layers=2, results=results)
    assert (
        "Without a plot: where this card was written, matplotlib was not installed" in (saved / "README.md").read_text()
    )
    plotted = {"keep_layers": 2, "results": results, "plot": True}
    assert 'pip install "hf-layerdrop[reports]"' in refusal(
        hf_layerdrop.save_pruned, whole, folder / "plotted", **plotted
    )
    assert not (folder / "plotted").exists()
    hf_layerdrop.push_pruned_to_hub(str(whole), "alice/two", keep_layers=2, results=results, token=WRITE_TOKEN)
    text = "the film was very good"
    served = [
        transformers.pipeline("text-classification", "alice/two", token=WRITE_TOKEN)(text),
        transformers.pipeline("text-classification", str(saved))(text),
        hf_layerdrop.pipeline("text-classification", whole, keep_layers=2)(text),
    ]
    assert served[0] == served[1] == served[2] != transformers.pipeline("text-classification", str(whole))(text)


def command_line(whole: Path, folder: Path) -> None:
    """Run the commands that need no more, and see what the others say."""
    os.chdir(folder)
    for command in ("train", "distill", "sweep", "search", "prune", "push", "inspect", "demo"):
        assert said(0, command, "--help")
    assert "4" in said(0, "inspect", str(whole))
    assert said(0, "prune", str(whole), "--keep-layers", "2", "--output", "cut")
    before = sorted(folder.iterdir())
    for words in (
        ("train", "--model", str(whole), "--task", "sst2", "--output_dir", "new"),
        ("sweep", str(whole), "--task", "sst2", "--output", "new"),
        ("search", str(whole), "--task", "sst2", "--depth", "2", "--output", "new.json"),
        ("distill", str(whole), "--task", "sst2", "--keep-layers", "2", "--output", "new"),
        ("demo", "--model", str(whole), "--output", "new"),
        ("sweep", str(whole), "--task", "sst2", "--output", "new", "--report", "new.html"),
    ):
        (line,) = said(2, *words).splitlines()
        assert line.startswith("Error: This needs ")
        assert 'pip install "hf-layerdrop[' in line
    assert sorted(folder.iterdir()) == before


def said(code: int, *words: str) -> str:
    """Run a command, and return what it said: on stdout if it has to be done, else on stderr."""
    from hf_layerdrop.cli import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run(words)
    assert found == code, (words, found, err.getvalue())
    return err.getvalue() if code else out.getvalue()


if __name__ == "__main__":
    if "--blocked" in sys.argv:
        sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
    with tempfile.TemporaryDirectory() as home, HubServer() as hub:
        os.environ |= {**hub.env(home), "HF_HUB_OFFLINE": "0"}
        main(Path(home))
        pushed = sorted(hub.repos["alice/two"].files())
    sys.stdout.write(json.dumps(pushed) + "\n")
