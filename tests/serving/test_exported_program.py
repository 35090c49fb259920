"""torch.export of cut models, and of models that still carry LayerDrop."""

from __future__ import annotations

import pytest
import torch

from conftest import batch_for, build, injected, output_of
from hf_layerdrop.errors import LayerDropStateError
from serving import CLASSES, assert_served, batch, cut_folder, plain, typed, whole

HEADING = "torch.export"


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("shape", CLASSES)
def test_a_cut_is_exported_with_rows_and_length_left_open(shape, depth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = plain(shape, cut_folder(shape, depth, tmp_path)), batch(shape)
    names = typed(HEADING, model=model, batch=inputs)
    assert_served(names["logits"].detach(), model, inputs)
    other = {name: values[:2] for name, values in batch(shape, length=6).items()}
    assert_served(names["program"].module()(**other).logits.detach(), model, other)
    assert (tmp_path / "model.pt2").is_file()
    with torch.no_grad():
        assert (whole(shape)(**inputs).logits - names["logits"]).abs().max() > 0.01  # the cut is another model


@pytest.mark.parametrize("settings", [{}, {"execution": "mask"}, {"granularity": "row"}])
def test_a_model_that_carries_layerdrop_is_exported_in_eval_and_refused_in_train_mode(settings):
    head = "BertForSequenceClassification"
    inputs, model = batch_for(head), injected(head, **settings)
    expected = output_of(build(head), inputs)
    program = torch.export.export(model, (), inputs)
    assert torch.equal(program.module()(**inputs).logits, expected)
    model.train()
    with pytest.raises(LayerDropStateError, match=r"call model.eval\(\) before the export"):
        torch.export.export(model, (), inputs)
    with pytest.raises(LayerDropStateError, match=r"call model.eval\(\) before the export"):
        torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False)
    model(**inputs)  # and it goes on as before
    assert torch.equal(output_of(model.eval(), inputs), expected)
