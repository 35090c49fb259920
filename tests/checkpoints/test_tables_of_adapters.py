"""The table beside a base model says nothing of the base with an adapter; the adapter's own does."""

import pytest

from classifiers import save_classifier
from hf_layerdrop import KeepLayersError, evaluate_depths, load_checkpoint, sub_network, write_recommended
from tables import table_for

peft = pytest.importorskip("peft")
OF_BASE = table_for(scores={(0, 1, 2, 3): 0.9, (0, 1): 0.8, (2, 3): 0.1})
OF_ADAPTER = table_for(scores={(0, 1, 2, 3): 0.9, (0, 1): 0.1, (2, 3): 0.8})


@pytest.fixture
def adapter(tmp_path):
    base = save_classifier(tmp_path / "base")
    write_recommended(OF_BASE, base)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(load_checkpoint(base), config).save_pretrained(tmp_path / "adapter")
    write_recommended(OF_ADAPTER, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_loading_goes_by_the_table_of_the_adapter(adapter):
    assert load_checkpoint(adapter, keep_layers="best:2").config.hf_layerdrop["keep_layers"] == {"encoder": [2, 3]}


def test_in_memory_the_table_of_the_base_is_refused(adapter, tmp_path):
    inside = load_checkpoint(adapter)
    around = peft.PeftModel.from_pretrained(load_checkpoint(tmp_path / "base"), adapter)
    for model in (inside, around):
        with pytest.raises(KeepLayersError, match="of the base alone"), sub_network(model, "best:2"):
            pass
        with sub_network(model, [2, 3]) as kept:
            assert kept == {"encoder": (2, 3)}
    with pytest.raises(KeepLayersError, match="of the base alone"):
        evaluate_depths(inside, [{}], depths=["fastest:0.9"])
    with sub_network(load_checkpoint(tmp_path / "base"), "best:2") as kept:
        assert kept == {"encoder": (0, 1)}
