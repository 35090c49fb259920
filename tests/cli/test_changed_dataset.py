"""A local data set that was changed since is another one: what was measured on it before is not mixed in."""

import shutil

from classifiers import rows, save_classifier  # noqa: F401 - a fixture
from hf_layerdrop import read_recommended
from hf_layerdrop.cli import run


def test_sets_of_a_changed_folder_of_data_take_the_place(tmp_path, rows):
    model, data = save_classifier(tmp_path / "sst2"), tmp_path / "data"
    data.mkdir()
    shutil.copy(rows, data / "validation.csv")
    words = ["sweep", str(model), "--task", "sst2", "--dataset", str(data)]
    assert run([*words, "--depths", "4", "--output", str(tmp_path / "first")]) == 0
    assert run([*words, "--depths", "3", "--output", str(tmp_path / "more")]) == 0
    assert len(read_recommended(model).sets) == 2
    with open(data / "validation.csv", "a") as file:
        file.write("\n" + "\n".join(rows.read_text().splitlines()[1:]))
    assert run([*words, "--depths", "2", "--output", str(tmp_path / "again")]) == 0
    table = read_recommended(model)
    assert [one.keep_layers["encoder"] for one in table.sets] == [[0, 3]]
    assert str(tmp_path) not in (model / "layerdrop.json").read_text()
