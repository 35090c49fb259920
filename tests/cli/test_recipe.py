"""hf-layerdrop run: steps in order, each once, and an interrupted one goes on."""

from __future__ import annotations

import json

import pytest

from classifiers import save_classifier
from hf_layerdrop.checkpoints.headers import read_config
from hf_layerdrop.cli import recipe, run
from hf_layerdrop.results.table import read_results

TRAINER = {"use_cpu": True, "report_to": "none", "disable_tqdm": "true", "eval_strategy": "no"}


@pytest.fixture
def chain(tmp_path):
    """Pretraining with LayerDrop, pruning, finetuning without: the protocol of the paper's Table 7."""
    texts = [{"text": f"{word} {word} {word} .", "label": int(word in "abcd")} for word in "abcdwxyz" * 8]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, texts)))
    data = {"train-file": str(file), "validation-file": str(file), "text-columns": "text", **TRAINER}
    pretrain = {"task": "mlm", "config": "tiny-4x16", "layerdrop": 0.2, "max-length": 16, "vocab-size": 400}
    pretrain |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "mlm")}
    finetune = {"model": str(tmp_path / "small"), "max_steps": 2, "output_dir": str(tmp_path / "task")}
    steps = [
        {"train": {**pretrain, **data}},
        f"prune {tmp_path / 'mlm'} --keep-layers ::2 --output {tmp_path / 'small'}",
        {"train": {**finetune, **data, "save_strategy": "no"}},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"steps": steps}))
    return path


def test_pretraining_pruning_and_finetuning_are_one_command(chain, tmp_path, capsys):
    assert run(["run", str(chain), "--dry-run"]) == 0
    assert not (tmp_path / "mlm").exists()
    assert run(["run", str(chain)]) == 0
    assert read_config(tmp_path / "small")["num_hidden_layers"] == 2
    assert read_results(tmp_path / "task" / "depth_results.json")[0].depth == 2
    capsys.readouterr()
    assert run(["run", str(chain)]) == 0
    assert capsys.readouterr().out.count("done before") == 3


def test_an_interrupted_recipe_goes_on_from_the_last_checkpoint(chain, monkeypatch):
    asked: list[list[str]] = []
    codes = iter([0, 1, 0, 0])
    monkeypatch.setattr(recipe, "_run", lambda _, words: asked.append(list(words)) or next(codes))
    assert run(["run", str(chain)]) == 1
    assert run(["run", str(chain)]) == 0
    assert [words[0] for words in asked] == ["train", "prune", "prune", "train"]
    assert "--overwrite" not in asked[1]
    assert asked[2] == [*asked[1], "--overwrite"]
    steps = recipe.read_recipe(chain)
    assert recipe.StepJournal(chain.with_name("recipe.yaml.journal")).states(steps) == ["done"] * 3
    changed = [steps[0], [*steps[1], "--overwrite"], steps[2]]
    assert recipe.StepJournal(chain.with_name("recipe.yaml.journal")).states(changed) == ["done", None, None]


def test_a_killed_training_step_is_resumed(chain, tmp_path, monkeypatch):
    codes = iter([1])
    monkeypatch.setattr(recipe, "_run", lambda _, words: next(codes))
    assert run(["run", str(chain)]) == 1
    assert recipe.AGAIN["train"] == ["--resume_from_checkpoint", "auto", "--overwrite"]
    monkeypatch.undo()
    assert run(["run", str(chain)]) == 0
    assert (tmp_path / "task" / "depth_results.json").is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "list of steps"),
        ("steps: []", "list of steps"),
        ("- fly: {to: moon}", "Step 1 of the recipe is {'fly'"),
        ("- train: {}\n- 3", "Step 2 of the recipe is 3"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_recipe_that_is_none_is_refused(content, said, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert run(["run", str(path)]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_the_error_of_a_step_is_that_of_the_recipe(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("- prune nowhere/at/all --keep-layers 2 --output out")
    assert run(["run", str(path)]) == 2
    assert "nowhere/at/all" in capsys.readouterr().err


def test_a_step_that_was_refused_does_not_overwrite_when_it_is_tried_again(tmp_path, capsys):
    """Its output folder was there before: nothing in it is of the step."""
    model = save_classifier(tmp_path / "model")
    output = save_classifier(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    path = tmp_path / "recipe.yaml"
    path.write_text(f"- prune {model} --keep-layers 2 --output {output}")
    for _ in range(2):
        assert run(["run", str(path)]) == 2
        assert "exists" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_distill_is_a_step_that_goes_on_from_its_checkpoints(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text("- distill: {model: runs/sst2, task: sst2, keep-layers: 3, output: runs/student}\n")
    asked: list[list[str]] = []
    codes = iter([1, 0])
    monkeypatch.setattr(recipe, "_run", lambda _, words: asked.append(list(words)) or next(codes))
    assert (run(["run", str(path)]), run(["run", str(path)])) == (1, 0)
    first = ["distill", "runs/sst2", "--task", "sst2", "--keep-layers", "3", "--output", "runs/student"]
    assert asked == [first, [*first, "--resume_from_checkpoint", "auto", "--overwrite"]]
