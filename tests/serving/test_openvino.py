"""OpenVINO gives the logits of the model that was converted; `make serving-openvino`."""

from __future__ import annotations

import pytest

from serving import CLASSES, assert_served, batch, cut_folder, plain, runtime, typed

pytestmark = pytest.mark.serving
runtime("openvino", "openvino")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("shape", CLASSES)
def test_the_logits_are_those_of_the_model(shape, depth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs = plain(shape, cut_folder(shape, depth, tmp_path)), batch(shape)
    names = typed("OpenVINO", model=model, batch=inputs)
    assert_served(names["logits"], model, inputs)
    other = {name: values[:2] for name, values in batch(shape, length=6).items()}
    assert_served(names["compiled"]({name: values.numpy() for name, values in other.items()})["logits"], model, other)
