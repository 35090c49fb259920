"""PyTorch Lightning: its steps are followed, and a resumed run equals the uninterrupted one."""

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import build, recorded_runs
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, set_rates, set_step
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.search.learned_rates import learn_rates
from integrations import ROWS, needed

lightning = needed("lightning.pytorch")

HEAD = "BertForSequenceClassification"
RATES = LayerDropConfig((0, 1, 0.5, 0.5), seed=0)


class Classifier(lightning.LightningModule):
    def __init__(self, config=RATES):
        super().__init__()
        self.model = build(HEAD).train()
        self.runs = []
        if config is not None:
            inject_layerdrop(self.model, config)

    def training_step(self, batch, index):
        with recorded_runs(self.model) as runs:
            loss = self.model(**batch).loss
        self.runs.append(runs["encoder"])
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def fit(module, folder, epochs=2, resume=None, more=(), **changes):
    from hf_layerdrop import LightningStepCallback

    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in ROWS]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[LightningStepCallback(), *more],
        **{**quiet, **changes},
    )
    trainer.fit(module, DataLoader(rows, batch_size=2), ckpt_path=resume, weights_only=False)
    return trainer


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_run_drops_and_ends_as_the_uninterrupted_one(accumulated, tmp_path):
    whole, first, second = Classifier(), Classifier(), Classifier()
    changes = {"accumulate_grad_batches": accumulated}
    fit(whole, tmp_path, **changes)
    fit(first, tmp_path, epochs=1, **changes).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path, resume=str(tmp_path / "half.ckpt"), **changes)
    assert [*first.runs, *second.runs] == whole.runs
    assert len(whole.runs) == 8
    assert len({tuple(ran) for ran in whole.runs}) > 1
    assert {layer for ran in whole.runs for layer in ran} == {0, 2, 3}
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name
    counter = layerdrop_state(whole).state_dict()["counters"]["encoder"]
    assert counter == [8 // accumulated - 1, accumulated - 1, 1]


def test_dropped_layers_do_not_move_and_the_module_can_be_pruned(tmp_path):
    module = Classifier()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    fit(module, tmp_path, precision="bf16-mixed")
    moved = {name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])}
    assert {layer for layer in range(4) for name in moved if f".layer.{layer}." in name} == {0, 2, 3}
    prune_layers(module, [0, 2])
    assert module.model.config.num_hidden_layers == len(module.model.bert.encoder.layer) == 2


def test_a_model_in_evaluation_mode_is_an_error_and_not_a_training_without_layerdrop(tmp_path):
    module = Classifier()
    module.model.eval()
    with pytest.raises(LayerDropStateError, match=r"evaluation mode.*train\(\)"):
        fit(module, tmp_path)


def test_a_model_without_layerdrop_is_an_error(tmp_path):
    with pytest.raises(LayerDropStateError, match="inject_layerdrop first"):
        fit(Classifier(None), tmp_path)


class Sets(lightning.Callback):
    """Set a rate in the course of the training, as a user's callback would."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 2:
            set_rates(module, (0.9, 0.1, 0.5, 0.5))


def test_rates_that_were_set_and_the_version_of_the_sampler_hold_after_a_resume(tmp_path):
    config = LayerDropConfig(0.5, seed=3)
    whole, first, second = Classifier(config), Classifier(config), Classifier(config)
    for module in (whole, first):
        layerdrop_state(module).use_sampler_version(1)
    fit(whole, tmp_path, more=[Sets()])
    fit(first, tmp_path, epochs=1, more=[Sets()]).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path, resume=str(tmp_path / "half.ckpt"))
    assert [*first.runs, *second.runs] == whole.runs
    assert layerdrop_state(second).rates == {"encoder": [0.9, 0.1, 0.5, 0.5]}
    saved = second.model.config.hf_layerdrop
    assert (saved["rates"], saved["sampler_version"]) == ({"encoder": [0.9, 0.1, 0.5, 0.5]}, 1)


# --- learned rates ------------------------------------------------------------------------------------------------

LEARNED = LayerDropConfig(0.5, seed=0, sampler="learned")


def learned_rates(module):
    return module.model.config.hf_layerdrop["learned_rates"]["encoder"]


def learned_in_a_loop(accumulated, epochs):
    """Return what a loop without Lightning learns of the same batches."""
    module = Classifier(LEARNED)
    optimizer, step = module.configure_optimizers(), 0
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in ROWS]
    for _ in range(epochs):
        batches = list(DataLoader(rows, batch_size=2))
        for first in range(0, len(batches), accumulated):
            together = batches[first : first + accumulated]
            for micro_step, batch in enumerate(together):
                set_step(module, step, micro_step)
                loss = module.training_step(batch, None)
                (loss / accumulated).backward()  # as Lightning does, also where fewer are left
                ended = micro_step == len(together) - 1
                if ended:
                    optimizer.step()
                    optimizer.zero_grad()
                learn_rates(module, loss.detach() / len(together), step_ended=ended)
            step += 1
    return module


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_rates_are_learned_as_in_a_loop_and_a_resumed_run_goes_on_learning(accumulated, tmp_path):
    whole, first, second = Classifier(LEARNED), Classifier(LEARNED), Classifier(LEARNED)
    changes = {"accumulate_grad_batches": accumulated}
    fit(whole, tmp_path, epochs=6, **changes)
    expected = learned_in_a_loop(accumulated, epochs=6)
    assert whole.runs == expected.runs
    assert learned_rates(whole) == pytest.approx(learned_rates(expected), abs=1e-6)
    assert max(abs(rate - 0.5) for rate in learned_rates(whole)) > 1e-3
    assert sum(learned_rates(whole)) == pytest.approx(2)
    fit(first, tmp_path, epochs=3, **changes).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path, epochs=6, resume=str(tmp_path / "half.ckpt"), **changes)
    assert [*first.runs, *second.runs] == whole.runs
    assert learned_rates(second) == learned_rates(whole)
    assert learned_rates(first) != learned_rates(whole)


def test_checkpoints_of_older_versions_go_on_learning_and_those_of_other_modules_are_refused(tmp_path):
    first, second = Classifier(LEARNED), Classifier(LEARNED)
    fit(first, tmp_path, epochs=3).save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=False)
    saved = checkpoint["hf_layerdrop"]
    old, other = saved[""]["learned"], {"query": saved[""]}
    for name, entry in (("old", old), ("other", other)):
        torch.save({**checkpoint, "hf_layerdrop": entry}, tmp_path / f"{name}.ckpt")
    fit(second, tmp_path, epochs=3, resume=str(tmp_path / "old.ckpt"))
    assert learned_rates(second) == learned_rates(first)
    with pytest.raises(LayerDropStateError, match=r"by the paths \['query'\], and none by ''"):
        fit(Classifier(LEARNED), tmp_path, resume=str(tmp_path / "other.ckpt"))
