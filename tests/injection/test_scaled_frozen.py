"""What layers add is scaled wherever they may be dropped, in layers that are frozen in evaluation mode, too."""

from __future__ import annotations

import pytest
import torch

from depth_models import labelled, model_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_step

HEAD = "LlamaForCausalLM"


def losses(**settings: str) -> torch.Tensor:
    model = inject_layerdrop(model_of(HEAD), LayerDropConfig(0.4, scale="kept", seed=3, **settings))  # type: ignore[arg-type]
    for layer in model.model.layers[:2]:
        layer.eval()  # as whoever freezes them does, to be rid of their dropout
    found = []
    for step in range(4):
        set_step(model, step)
        found.append(model(**labelled(HEAD)).loss.detach())
    return torch.stack(found)


def test_layers_that_are_skipped_and_masked_agree() -> None:
    assert torch.allclose(losses(), losses(execution="mask"), atol=1e-5)


@pytest.mark.parametrize("granularity", ["batch", "row"])
def test_the_mode_of_a_layer_changes_nothing_without_dropout(granularity: str) -> None:
    model = inject_layerdrop(model_of(HEAD), LayerDropConfig(0.4, scale="kept", seed=3, granularity=granularity))
    trained = model(**labelled(HEAD)).loss
    for layer in model.model.layers:
        layer.eval()
    set_step(model, 0)
    assert torch.allclose(model(**labelled(HEAD)).loss, trained)
