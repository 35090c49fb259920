"""Benchmarks run by name, and print their numbers as one line of JSON, last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_layerdrop.search.strategies import STRATEGIES
from warm import Done, run_python

ROOT = Path(__file__).parent.parent
SMALL = ("--layers", "6", "--keep", "3", "--hidden", "32", "--batches", "2", "--rows", "4", "--length", "8")


def benchmark(*arguments: str) -> Done:
    return run_python("-m", "benchmarks", *arguments, cwd=ROOT)


def test_the_search_benchmark_shares_prefixes_and_gives_the_same_scores() -> None:
    done = benchmark("search", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["same_scores"]
    assert numbers["sub_networks"] == 20
    assert numbers["layer_forwards"] == 34  # prefixes of 3 of 6 layers: 4 + 10 + 20
    assert numbers["layer_forwards_naive"] == 60
    assert 0 < numbers["held_mb"] <= numbers["peak_mb"] <= numbers["memory_limit_mb"]
    assert numbers["seconds"] > 0
    assert numbers["seconds_naive"] > 0


def test_the_step_benchmark_compares_equal_work_and_measures_the_parts_that_are_named() -> None:
    done = benchmark("step", "--short", "1", "--json", "--clock", "cpu", "--parts", "bounds,designs,depth,memory")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    compared = numbers["comparisons"]
    equal = [label for label, entry in compared.items() if "same_losses" in entry]
    assert all(compared[label]["same_losses"] for label in equal)
    assert {
        "rate 0: against untouched",
        "rate 0.5: against cut",
        "bart: against transformers' own",
        "designs: against per-layer wrapper",
    } <= set(equal)
    assert "designs: against compute and discard" in set(compared) - set(equal)
    assert numbers["bounds"].keys() == {"rate 0", "rate 0.5", "bart"}
    assert sum("layers of width" in label for label in compared) == 4  # two depths, beside the cut and the untouched
    memory = numbers["memory"]
    assert memory["0.5"]["peak_mb"] < memory["0.0"]["peak_mb"]
    assert all(values["peak_mb"] == pytest.approx(values["cut_peak_mb"], rel=0.05) for values in memory.values())


def test_the_startup_benchmark_sets_commands_beside_the_import_of_torch() -> None:
    done = benchmark("startup", "--json", "--short", "1")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["seconds"].keys() - numbers["over_import_torch"].keys() == {"import torch"}
    assert all(seconds > 0 for seconds in numbers["seconds"].values())
    assert numbers["slowest_seconds"] == numbers["seconds"]["--help"]  # other commands have no limit


def test_a_part_that_is_not_there_is_refused_with_the_names_of_those_that_are() -> None:
    done = benchmark("step", "--short", "1", "--parts", "bounds,speed")
    assert done.returncode == 1
    assert "speed" in done.stderr
    assert "designs" in done.stderr


def test_the_ddp_benchmark_compares_on_two_ranks() -> None:
    done = benchmark("ddp", "--short", "1", "--json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    compared = numbers["comparisons"]
    assert compared["DDP, rate 0.0: against untouched"]["same_losses"]
    assert compared["DDP, rate 0.5, two ways: against find_unused_parameters"]["same_losses"]
    assert all(entry["rounds"] == 5 and entry["ratio_median"] > 0 for entry in compared.values())
    assert len(compared) == 3
    assert done.stdout.count("DDP, rate 0.5: against untouched") == 2  # one row, by rank 0 alone, and the numbers


def test_the_load_benchmark_reads_the_kept_tensors_and_no_more() -> None:
    done = benchmark("load", "--json", "--short", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("| load, then cut |") for line in lines)
    numbers = json.loads(lines[-1])
    assert numbers["bytes_kept"] <= numbers["bytes_read"] <= 1.02 * numbers["bytes_kept"]
    assert all(numbers[name] > 0 for name in ("seconds", "seconds_plain", "seconds_load_then_cut", "peak_mb"))


def test_the_hub_benchmark_fetches_the_kept_tensors_once() -> None:
    # A process of its own, which has not yet read where the Hub is.
    command = [sys.executable, "-m", "benchmarks", "hub", "--json", "--short", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["bytes_kept"] <= numbers["bytes_served"] <= 1.02 * numbers["bytes_kept"] < numbers["file_bytes"]
    assert numbers["bytes_served"] <= numbers["bytes_served_cut_off"] < numbers["file_bytes"]
    assert numbers["cut_off"] >= 1
    assert numbers["weight_requests_again"] == 0


def test_the_prune_benchmark_writes_the_same_either_way() -> None:
    done = benchmark("prune", "--json", "--short", "1")
    assert done.returncode == 0, done.stderr
    assert "| hf-layerdrop prune |" in done.stdout
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert 0 < numbers["bytes_kept"] < numbers["bytes"]
    assert all(numbers[name] > 0 for name in ("peak_mb", "peak_resident_mb", "peak_mb_load_cut_save", "seconds"))


def test_names_and_options_are_listed() -> None:
    done = benchmark("--help")
    assert all(name in done.stdout for name in ("load", "search", "strategies"))
    assert "--hidden" in benchmark("search", "--help").stdout
    assert benchmark("nonsense").returncode == 2


@pytest.mark.slow
def test_every_strategy_chooses_layers_of_a_model_trained_on_real_data_and_beam_is_near_the_best() -> None:
    size = ["--layers", "6", "--hidden", "32", "--depths", "3", "--search-rows", "100"]
    options = [*size, "--seeds", "1", "--steps", "120", "--json"]
    done = benchmark("strategies", *options)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert all(f"`{name}`" in " ".join(numbers["table"]) for name in STRATEGIES)
    (compared,) = numbers["beam_against_exhaustive"]
    assert 0 <= compared["behind"] <= 0.05
    assert compared["share_of_layer_forwards"] < compared["share_with_all_extras"]  # beam is for deeper models
