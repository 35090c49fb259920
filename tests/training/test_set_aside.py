"""A file that only has the name of recommended sets may be anyone's: what measures or trains keeps it."""

import json

import pytest

from classifiers import save_classifier
from hf_layerdrop import write_recommended
from hf_layerdrop.training.recommend import _earlier, forget_recommended
from tables import table_for

FOREIGN = [{"version": 2, "sets": []}, {"rate": 0.2, "seed": 7}]


@pytest.mark.parametrize("content", FOREIGN, ids=["later version", "settings"])
@pytest.mark.parametrize("make_way", [_earlier, forget_recommended])
def test_it_is_set_aside(tmp_path, content, make_way):
    for number in (1, 2):
        (tmp_path / "layerdrop.json").write_text(json.dumps({**content, "number": number}))
        with pytest.warns(UserWarning, match=rf"layerdrop\.json\.{number}"):
            assert make_way(tmp_path) is None
        assert not (tmp_path / "layerdrop.json").exists()
        assert json.loads((tmp_path / f"layerdrop.json.{number}").read_text())["number"] == number


def test_a_folder_of_that_name_stays(tmp_path):
    (tmp_path / "layerdrop.json").mkdir()
    forget_recommended(tmp_path)  # before the weights of a whole training are saved
    assert (tmp_path / "layerdrop.json").is_dir()


def test_a_table_of_other_weights_is_forgotten(tmp_path):
    folder = save_classifier(tmp_path / "sst2")
    before = {path.name for path in folder.iterdir()}
    write_recommended(table_for(), folder)
    forget_recommended(folder)
    assert {path.name for path in folder.iterdir()} == before
