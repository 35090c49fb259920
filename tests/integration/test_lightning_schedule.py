"""PyTorch Lightning follows the schedule that a config names, as far as it knows the number of steps."""

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import build
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state
from hf_layerdrop.errors import LayerDropStateError
from integrations import ROWS, needed

lightning = needed("lightning.pytorch")


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = build("BertForSequenceClassification").train()
        self.rates = []
        inject_layerdrop(self.model, LayerDropConfig(0.8, schedule="falling", seed=0))

    def training_step(self, batch, index):
        self.rates.append(layerdrop_state(self.model).rates["encoder"][0])
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def fit(module, folder, **changes):
    from hf_layerdrop import LightningStepCallback

    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in ROWS]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [LightningStepCallback()]
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, callbacks=callbacks, **quiet, **changes
    )
    trainer.fit(module, DataLoader(rows, batch_size=2))


def test_rates_fall_over_the_steps_that_there_are(tmp_path):
    module = Classifier()
    fit(module, tmp_path, max_epochs=2)
    steps = len(module.rates)
    assert steps > 4
    assert module.rates == pytest.approx([0.8 * (1 - step / steps) for step in range(steps)])


def test_without_an_end_it_says_that_nothing_follows_the_schedule(tmp_path):
    with pytest.raises(LayerDropStateError, match="nothing follows"):
        fit(Classifier(), tmp_path, max_epochs=-1)
