"""Files that must not be lost, and files that must not come along."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from classifiers import save_classifier
from hf_layerdrop import save_pruned
from hf_layerdrop.checkpoints.tokenizers import processor_files
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, OutputExistsError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return save_classifier(tmp_path / "run" / "checkpoint-4")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "place", ["run", "run/checkpoint-4", "run/../run/checkpoint-4", "link", "run/checkpoint-4/six"]
)
def test_the_source_is_never_written_over(model, place, overwrite, tmp_path, capsys) -> None:
    """Neither the folder itself, by whatever name, nor one around it, with its siblings and their optimizer states."""
    (model.parent / "optimizer.pt").write_text("kept")
    (tmp_path / "link").symlink_to(model)
    before = listing(tmp_path)
    assert run(["prune", str(model), "--keep-layers", "2", "--output", str(tmp_path / place), *overwrite]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert listing(tmp_path) == before


def test_a_folder_of_the_same_beginning_is_another(model, tmp_path) -> None:
    save_pruned(model, tmp_path / "run" / "checkpoint-40", keep_layers=2)
    assert (tmp_path / "run" / "checkpoint-40" / "config.json").is_file()


@pytest.mark.parametrize("other", [".git/HEAD", "optimizer.pt", "checkpoint-8/config.json", "notes.docx", "data.csv"])
def test_what_no_save_made_is_not_overwritten(model, other, tmp_path) -> None:
    output = save_pruned(model, tmp_path / "small", keep_layers=2)
    save_pruned(model, output, keep_layers=[0], overwrite=True)  # what a save made, is
    (output / other).parent.mkdir(exist_ok=True)
    (output / other).write_text("mine")
    before = listing(output)
    with pytest.raises(OutputExistsError, match="no save of a checkpoint makes"):
        save_pruned(model, output, keep_layers=2, overwrite=True)
    assert listing(output) == before


def test_a_link_out_of_the_checkpoint_does_not_come_along(model, tmp_path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (model / "merges.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"merges.txt' is a link that leads out of the checkpoint"):
        save_pruned(model, tmp_path / "small", keep_layers=2)
    assert not (tmp_path / "small").exists()


def test_links_of_the_hubs_cache_come_along(model, tmp_path) -> None:
    home = tmp_path / "models--a--b"
    snapshot, blobs = home / "snapshots" / ("0" * 40), home / "blobs"
    shutil.copytree(model, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert {path.name for path in processor_files(snapshot)} == {path.name for path in processor_files(model)} != set()
