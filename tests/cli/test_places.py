"""Long work loses nothing: its place is tried before, records are written as they come, a picture may fail."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop.checkpoints.outputs import check_writable, whole_folder, write_whole
from hf_layerdrop.cli import run
from hf_layerdrop.cli import sweep as sweeping
from hf_layerdrop.errors import OutputExistsError
from hf_layerdrop.evaluation import evaluate as evaluating
from hf_layerdrop.results.table import read_results
from hf_layerdrop.training.train import check_output

LONG = "x" * 250  # as long as file systems take, and too long for another name beside it
TRAINER = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--max_steps", "1")
COMMANDS = {
    "sweep": ("sweep", "MODEL", "--validation-file", "ROWS", "--text-columns", "sentence", "--output", "PLACE"),
    "sweep's report": ("sweep", "MODEL", "--task", "sst2", "--output", "OUT", "--report", "PLACE/report.html"),
    "search": ("search", "MODEL", "--depth", "2", "--task", "sst2", "--output", "PLACE/selection.json"),
    "search's journal": ("search", "MODEL", "--depth", "2", "--task", "sst2", "--output", "OUT", "--journal", "PLACE"),
    "train": ("train", "--model", "MODEL", "--task", "sst2", "--output_dir", "PLACE", *TRAINER),
    "distill": ("distill", "MODEL", "--task", "sst2", "--output", "PLACE", "--output_dir", "OUT", *TRAINER),
    "demo": ("demo", "--output", "PLACE"),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, which is what a full disk and a used up quota do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["/proc/none", "x" * 300, "full"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(command, place, model, rows, tmp_path, capsys):
    names = {"MODEL": model, "ROWS": rows, "OUT": tmp_path / "out", "PLACE": tmp_path / place}
    words = list(COMMANDS[command])
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    before = sorted(tmp_path.iterdir())
    if place == "full":
        with full_disk():
            code = run(words)
    else:
        code = run(words)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "cannot be written" in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_left_of_a_try_and_nothing_is_there_meanwhile(tmp_path):
    for place in (tmp_path / "a" / "b", tmp_path / LONG, tmp_path / LONG / "results.json"):
        check_writable(place)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="is a file and not a folder"):
        check_writable(tmp_path / "file" / "a")
    check_output(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_that_are_as_long_as_they_may_be_are_written(tmp_path):
    write_whole(tmp_path / LONG, "whole")
    with whole_folder(tmp_path / "folder" / LONG) as new:
        (new / "a").write_text("one")
    assert (tmp_path / LONG).read_text() == "whole"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [LONG]


@pytest.mark.parametrize("name", ["a$b", "$a_b$", "_a", "$\\frac{a$", LONG])
def test_sweep_draws_a_model_of_any_name(name, rows, tmp_path, capsys):
    folder = save_classifier(tmp_path / name)
    words = ["sweep", str(folder), "--validation-file", str(rows), "--text-columns", "sentence", "--depths", "2,1"]
    output = tmp_path / "swept" / name
    assert run([*words, "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["depth.png", "depth.svg", "depth_results.json"]
    assert name in (output / "depth.svg").read_text() or "\\" in name  # which XML writes in another way
    assert "Warning" not in capsys.readouterr().out


def sweep(model, rows, output):
    words = ["sweep", str(model), "--validation-file", str(rows), "--text-columns", "sentence"]
    return run([*words, "--output", str(output)])


def test_a_picture_that_fails_is_a_warning(model, rows, tmp_path, monkeypatch, capsys):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(sweeping, "draw_depth_plot", fail)
    assert sweep(model, rows, tmp_path / "swept") == 0
    assert "the picture could not be drawn (RuntimeError: no such font)" in capsys.readouterr().out
    assert len(read_results(tmp_path / "swept" / "depth_results.json")) == 4


def test_an_interrupted_sweep_has_written_what_was_measured(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "SUB_NETWORKS_A_RECORD", 1)
    assert sweep(model, rows, tmp_path / "whole") == 0
    whole = {str(one.keep_layers): one.metrics for one in read_results(tmp_path / "whole" / "depth_results.json")}
    measured = evaluating.Evaluator._pass
    passes = iter(range(100))

    def stopped(*args: object) -> object:
        if next(passes) == 2:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(evaluating.Evaluator, "_pass", stopped)
    assert sweep(model, rows, tmp_path / "swept") == 130
    found = read_results(tmp_path / "swept" / "depth_results.json")
    assert len(found) == 2
    assert all(whole[str(one.keep_layers)] == one.metrics for one in found)


@pytest.mark.filterwarnings("ignore:.*could not be written")
def test_a_disk_that_fills_up_while_it_measures_costs_the_file_and_not_the_table(
    model, rows, tmp_path, monkeypatch, capsys
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    measure = sweeping.measure_depths

    def with_full_disk(*args: object, **kwargs: object) -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return measure(*args, **kwargs)

    monkeypatch.setattr(sweeping, "measure_depths", with_full_disk)
    try:
        code = sweep(model, rows, tmp_path / "swept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert "0-3" in capsys.readouterr().out
