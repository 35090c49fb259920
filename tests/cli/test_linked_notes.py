"""What a command notes for itself in a checkpoint's folder stays in it, and overwrites nothing of anyone."""

import pytest

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop import read_recommended
from hf_layerdrop.cli import run


@pytest.mark.parametrize("link", [".cache", ".cache/huggingface"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, rows, link):
    model, elsewhere = save_classifier(tmp_path / "sst2"), tmp_path / "repository"
    (elsewhere / "huggingface").mkdir(parents=True)
    (model / link).parent.mkdir(exist_ok=True)
    (model / link).symlink_to(elsewhere)
    words = ["--task", "sst2", "--validation-file", str(rows), "--depths", "2", "--output", str(tmp_path / "out")]
    assert run(["sweep", str(model), *words]) == 0
    assert len(read_recommended(model).sets) == 1
    assert [path.name for path in elsewhere.rglob("*")] == ["huggingface"]


def test_what_git_ignores_there_stays_as_it_is(tmp_path, rows):
    model = save_classifier(tmp_path / "sst2")
    ignored = model / ".cache" / "huggingface" / ".gitignore"
    ignored.parent.mkdir(parents=True)
    ignored.write_text("mine\n")
    words = ["--task", "sst2", "--validation-file", str(rows), "--depths", "2", "--output", str(tmp_path / "out")]
    assert run(["sweep", str(model), *words]) == 0
    assert ignored.read_text() == "mine\n"
