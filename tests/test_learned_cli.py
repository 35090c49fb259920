"""Learned drop rates from the command line: one flag to learn them, and files that the other commands read."""

import pytest
from transformers import AutoConfig

from hf_layerdrop.cli import run
from hf_layerdrop.learned import learned_keep_layers
from test_training import command, files, model, sentences  # noqa: F401 - fixtures


@pytest.mark.parametrize("steps", [1, 30])
def test_the_command_learns_rates_by_one_flag_and_writes_what_prune_reads(command, tmp_path, capsys, steps):  # noqa: F811
    folder = tmp_path / "run"
    flags = ["--max-steps", str(steps), "--learning_rate=0.01", "--use_cpu", "--report_to", "none"]
    assert run([*command, "--layerdrop", "0.25", "--sampler", "learned", "--eval-depths", "4,2", *flags]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "learned, 0.25" in printed
    assert (folder / "learned_rates.png").is_file()
    assert ("Nothing was learned" in printed) == (steps == 1)
    assert (folder / "learned_depth_2.json").is_file() == (steps == 30)
    if steps == 30:
        spec = str(folder / "learned_depth_2.json")
        assert run(["prune", str(folder), "--keep-layers", spec, "--output", str(tmp_path / "small")]) == 0
        kept = AutoConfig.from_pretrained(tmp_path / "small").hf_layerdrop["keep_layers"]
        expected = learned_keep_layers(AutoConfig.from_pretrained(folder), 2)
        assert {name: tuple(layers) for name, layers in kept.items()} == expected
