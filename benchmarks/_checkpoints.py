"""Models whose checkpoints are loaded; what is heavy is imported late, after a benchmark has set its environment."""

from __future__ import annotations

from typing import Any


def bert_classifier(layers: int, hidden: int) -> Any:
    """Build a BERT with the usual vocabulary and random weights: BERT-large at 24 layers of width 1,024."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
    )
    return BertForSequenceClassification(config)
