"""ONNX Runtime gives the logits of the model that was exported; `make serving-onnxruntime`."""

from __future__ import annotations

import pytest

from serving import CLASSES, assert_served, batch, cut_folder, plain, runtime, typed

pytestmark = pytest.mark.serving
onnxruntime = runtime("onnxruntime", "onnx onnxscript onnxruntime")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("shape", CLASSES)
def test_the_logits_are_those_of_the_model(shape, depth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = plain(shape, cut_folder(shape, depth, tmp_path)), batch(shape)
    assert_served(typed("ONNX Runtime", model=model, batch=inputs)["logits"], model, inputs)
    other = {name: values[:2] for name, values in batch(shape, length=6).items()}
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (logits,) = session.run(["logits"], {name: values.numpy() for name, values in other.items()})
    assert_served(logits, model, other)
