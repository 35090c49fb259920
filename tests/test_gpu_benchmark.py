"""`make gpu`: what cannot run is said by name, what is there is not run again, what failed fails the command."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import part as gpu_part
from benchmarks.gpu import wheels
from benchmarks.gpu._device import Skipped
from benchmarks.gpu._rows import markdown, read_rows, write_row


@pytest.fixture
def taken(monkeypatch):
    """Measurements of a part that is there for the test alone; what was measured is listed."""
    seen = []

    def measurements(device, short):
        def lacks():
            raise Skipped("bitsandbytes is missing")

        def fills():
            raise torch.OutOfMemoryError("2 GB were asked for. More words.")

        def breaks():
            raise ValueError("wrong\nshape")

        def good():
            seen.append((device, short))
            return {"ms": 1.5}

        yield from {"good": good, "lacks": lacks, "fills": fills, "breaks": breaks}.items()

    module = type("Part", (), {"measurements": staticmethod(measurements)})
    monkeypatch.setattr(gpu_part, "import_module", lambda name: module)
    return seen


def test_each_measurement_is_a_row_whatever_becomes_of_it(taken, tmp_path):
    gpu_part.main("steps", str(tmp_path), "cpu", "short")
    rows = {row["what"]: row for row in read_rows(tmp_path / "steps.jsonl")}
    assert rows["good"]["ms"] == 1.5
    assert rows["lacks"]["skipped"] == "bitsandbytes is missing"
    assert rows["fills"]["skipped"] == "out of memory: 2 GB were asked for"
    assert rows["breaks"]["failed"] == "ValueError: wrong"
    assert "done" not in rows
    assert json.loads((tmp_path / "machine.json").read_text())["torch"] == torch.__version__


def test_what_was_measured_is_not_measured_again(taken, tmp_path):
    for _ in range(2):
        gpu_part.main("steps", str(tmp_path), "cpu")
    assert taken == [("cpu", False)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_skips_each_part_by_name(tmp_path, capfd):
    assert gpu.run(parts="steps,search", output=str(tmp_path)) == {
        "results": str(tmp_path / "results.json"),
        "measured": 0,
        "skipped": 2,
    }
    found = json.loads((tmp_path / "results.json").read_text())
    for name in ("steps", "search"):
        assert "sees no CUDA device" in found["parts"][name][0]["skipped"]
    assert "sees no CUDA device" in (tmp_path / "results.md").read_text()


def test_a_failed_row_fails_the_command_and_a_part_that_is_done_is_not_run(tmp_path):
    for row in ({"what": "good", "ms": 1.0}, {"what": "done", "done": True}):
        write_row(tmp_path / "steps.jsonl", row)
    assert gpu.run(device="cpu", parts="steps", output=str(tmp_path))["measured"] == 1
    assert read_rows(tmp_path / "steps.jsonl")[0] == {"what": "good", "ms": 1.0}
    with (tmp_path / "search.jsonl").open("w") as file:
        for row in ({"what": "6 of 12", "failed": "ValueError: wrong"}, {"what": "done", "done": True}):
            file.write(json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match="search: 6 of 12"):
        gpu.run(device="cpu", parts="steps,search", output=str(tmp_path))


def test_no_time_and_other_settings_are_said(tmp_path):
    assert gpu.run(device="cpu", parts="steps", output=str(tmp_path), minutes=0.01)["skipped"] == 1
    assert "no time was left" in read_rows(tmp_path / "steps.jsonl")[0]["skipped"]
    with pytest.raises(SystemExit, match="--again"):
        gpu.run(device="cuda", parts="steps", output=str(tmp_path), minutes=0.01)
    with pytest.raises(SystemExit, match="no part nonsense"):
        gpu.run(parts="nonsense", output=str(tmp_path))


def test_a_line_that_was_cut_off_in_writing_is_left_out(tmp_path):
    write_row(tmp_path / "a.jsonl", {"what": "one", "failed": "no"})
    write_row(tmp_path / "a.jsonl", {"what": "one", "ms": 2.0})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"what": "tw')
    assert read_rows(tmp_path / "a.jsonl") == [{"what": "one", "ms": 2.0}]
    table = markdown({"device": "cpu", "short": True, "machine": {}, "parts": {"steps": [{"what": "a|b", "ms": 2.0}]}})
    assert "| a\\|b | 2 |" in table


def test_wheels_go_into_a_new_folder(tmp_path, capsys):
    (tmp_path / "old.whl").touch()
    with pytest.raises(SystemExit, match="2"):
        wheels.main([str(tmp_path)])
    assert "old.whl" in capsys.readouterr().err
