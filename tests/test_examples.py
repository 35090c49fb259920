"""Every example runs, in one process, on two ranks and again after a stop; launch files are read by their programs."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser
from transformers import AutoModelForSequenceClassification

from hf_layerdrop import demo_checkpoint, embedded_sst2
from hf_layerdrop.cli.training_flags import parse_training_arguments
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.tasks.registry import TASKS
from ranks import launch_two_ranks, run_on_two_ranks

ROOT = Path(__file__).parent.parent
EXAMPLES, LAUNCH = ROOT / "examples", ROOT / "examples" / "launch"
SHORT = {
    "pytorch_loop.py": ["--steps", "4", "--save-every", "2", "--rate", "0.5"],
    "accelerate_loop.py": ["--epochs", "2", "--rows", "64", "--rate", "0.5"],
}


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs an example in this process, as a script, and returns what it prints."""

    def run(name: str, output: Path, *options: str) -> str:
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        monkeypatch.setattr(sys, "argv", [name, "--output", str(output), *SHORT[name], *options])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_pytorch_loop_goes_on_after_a_stop_and_ends_with_a_shallow_model(run_here, tmp_path: Path) -> None:
    assert "trained from step 0 to 4" in run_here("pytorch_loop.py", tmp_path / "whole")
    run_here("pytorch_loop.py", tmp_path / "run", "--steps", "3")  # saved after two
    assert "trained from step 2 to 4" in run_here("pytorch_loop.py", tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    run_here("pytorch_loop.py", tmp_path / "none", "--rate", "0")
    assert not same(weights(tmp_path / "none"), weights(tmp_path / "whole"))
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "three-layers").config.num_hidden_layers
        == 3
    )


def test_the_accelerate_loop_goes_on_after_a_stop(run_here, tmp_path: Path) -> None:
    assert "trained 8 steps" in run_here("accelerate_loop.py", tmp_path / "whole")
    assert "trained 4 steps" in run_here("accelerate_loop.py", tmp_path / "run", "--epochs", "1")
    (tmp_path / "run" / "unfinished-2").mkdir()  # what a process leaves that is killed inside a save
    assert "trained 8 steps" in run_here("accelerate_loop.py", tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert [folder.name for folder in sorted((tmp_path / "run").iterdir())] == ["epoch-2", "model"]


def test_the_pytorch_loop_runs_on_two_ranks(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), *SHORT["pytorch_loop.py"]]
    assert run_on_two_ranks(EXAMPLES / "pytorch_loop.py", *words).count("trained from step 0 to 4") == 1


def test_the_accelerate_loop_runs_on_two_ranks_by_the_launch_file_for_ddp(tmp_path: Path) -> None:
    settings = ["--config_file", str(LAUNCH / "ddp.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    launcher = ["accelerate.commands.launch", *settings, "--main_process_port", "0"]
    words = ["--output", str(tmp_path), *SHORT["accelerate_loop.py"]]
    # Without the variable, and without a GPU, accelerate would run each process for itself.
    printed = launch_two_ranks(EXAMPLES / "accelerate_loop.py", *words, launcher=launcher, ACCELERATE_USE_CPU="true")
    assert "trained 4 steps" in printed  # half as many as one process


def test_run_glue_trains_measures_depths_and_saves_a_cut(tmp_path: Path, monkeypatch, capsys) -> None:
    rows, (train, validation) = embedded_sst2(), (str(tmp_path / f"{name}.csv") for name in ("train", "validation"))
    rows["train"].select(range(64)).to_csv(train)
    rows["validation"].select(range(32)).to_csv(validation)
    files = ["--train_file", train, "--validation_file", validation]
    training = ["--output_dir", str(tmp_path / "out"), "--max_steps", "4", "--eval_strategy", "epoch", "--use_cpu"]
    layers = ["--layerdrop", "0.5", "--warm_up", "0.5", "--depths", "3", "2", "--keep_layers", "2"]
    model = ["--model_name_or_path", str(demo_checkpoint()), "--max_seq_length", "32"]
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *model, *files, *training, *layers, "--report_to", "none"])
    runpy.run_path(str(EXAMPLES / "run_glue.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "eval_depth_3_accuracy" in printed
    assert re.findall(r"^(\d) layers .*accuracy \d\.\d{4}", printed, re.MULTILINE) == ["6", "3", "2"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out-cut").config.num_hidden_layers == 2


# Launch files, read by the programs that they are written for.


def environment_of(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what accelerate launch tells each process because of the file."""
    monkeypatch.chdir(ROOT)
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(LAUNCH / name), "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    environment = (
        prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    )
    for key, value in environment.items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    return environment


def test_the_launch_file_for_fsdp_shards_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_of("fsdp2.yaml", monkeypatch)["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    model = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["new_model"]()
    inject_layerdrop(model, 0.2)
    plugin.set_auto_wrap_policy(model)
    (wrapped,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert wrapped is type(model.bert.encoder.layer[0])


def test_the_launch_file_for_zero3_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of("zero3.yaml", monkeypatch)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    plugin = DeepSpeedPlugin(hf_ds_config=environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
    assert plugin.zero_stage == 3
    assert plugin.zero3_save_16bit_model
    assert plugin.offload_optimizer_device == "none"  # it loses gradients of dropped layers


def test_the_keys_of_the_zero3_file_are_deepspeeds() -> None:
    settings = json.loads((LAUNCH / "zero3.json").read_text())
    known = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig.model_fields
    aliases = {field.alias or name for name, field in known.items()}
    assert set(settings["zero_optimization"]) <= aliases


def train_command_of(script: str) -> list[str]:
    """Return the words of ``hf-layerdrop train`` in a shell script."""
    text = (LAUNCH / script).read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "hf-layerdrop train" in line)
    return line.partition("hf-layerdrop train")[2].replace('"$output"', "out").split()


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_bash_and_call_what_there_is(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)], check=False).returncode == 0
    text = (LAUNCH / script).read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "torchrun" in line and "hf-layerdrop" in line)
    words = re.sub(r'"?\$\w+(:\d+)?"?', "1", line.partition("torchrun")[2]).split()
    launched = get_args_parser().parse_args(words)
    assert launched.no_python
    assert launched.training_script == "hf-layerdrop"
    words = train_command_of(script)
    ours = {name: words[words.index(name) + 1] for name in ("--model", "--task", "--layerdrop")}
    assert ours["--task"] in TASKS
    rest = [word for word in words if word not in (*ours, *ours.values(), "--overwrite", "--bf16")]
    arguments = parse_training_arguments(rest)  # bf16 apart, which needs a device that has it
    assert arguments.save_steps == 500
    assert arguments.resume_from_checkpoint == "auto"


def test_the_slurm_script_stops_without_an_output_folder_and_starts_one_torchrun_a_node(tmp_path: Path) -> None:
    for command, says in {"scontrol": "echo node7", "srun": 'echo srun "$@"'}.items():  # what a cluster has
        (tmp_path / command).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / command).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "5",
    }

    def script(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(LAUNCH / "slurm.sbatch"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "output folder" in script().stderr
    assert script().returncode
    said = script("runs/one").stdout
    assert said.startswith("srun")
    assert "--nnodes 2" in said
    assert "--rdzv_endpoint node7:29500" in said
    assert "--output_dir runs/one" in said
