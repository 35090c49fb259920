"""Records and selections that a report is made of, the report as a file, and what a parser finds in it."""

from __future__ import annotations

import itertools

from hf_layerdrop.reports.html import write_report
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.selection import Neighbour, Scored, Selection

DEPTH = 4


HOSTILE = (
    '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">',
    "<a href=\"javascript:window.pwned=3\">click</a> <b>bold</b> %{x} ${'`'}",
    "'\"&amp;\u2028\n--><!--",
)


def result(kept, shift=0.0, **stacks):
    stacks = {"encoder": tuple(kept), **stacks}
    depth = sum(map(len, stacks.values()))
    quality = 0.5 + 0.1 * depth + 0.01 * kept[0] + 0.02 * kept[-1] + shift
    seconds = 0.01 * depth + 0.001 * kept[-1]
    return SubNetworkResult(stacks, 1_000_000 * depth, {"accuracy": quality, "loss": 1 - quality}, seconds, depth)


def all_sets(shift=0.0):
    return [result(kept, shift) for size in range(1, 5) for kept in itertools.combinations(range(DEPTH), size)]


def selection(**changes):
    values = {
        "keep_layers": {"encoder": (0, 3)},
        "depths": {"encoder": DEPTH},
        "strategy": "beam",
        "metric": "accuracy",
        "greater_is_better": True,
        "score": 0.75,
        "test_score": 0.71,
        "whole_score": 0.9,
        "whole_test_score": 0.88,
        "split": "half of the rows",
        "parameters": 2_000_000,
        "size_mb": 8.0,
        "latency_ms": 12.0,
        "evaluations": 5,
        "from_journal": 0,
        "layer_forwards": 9,
        "layer_forwards_alone": 12,
        "extra_layer_forwards": 4,
        "shared": True,
        "sub_networks": 6,
        "share_as_good": 0.25,
        "share_is_exact": False,
        "share_samples": 3,
        "runner_ups": (Scored({"encoder": (1, 3)}, 0.74), Scored({"encoder": (0, 1)}, 0.6)),
        "outside": (Neighbour({"encoder": (0, 1, 3)}, 0.8, 3_000_000, 12.0, 18.0),),
        "importances": {"encoder": (0.9, 0.1, 0.2, 0.8)},
        "warnings": ("It may be overfitted.",),
    }
    return Selection(**{**values, **changes})


TWO = {"LayerDrop": all_sets(), "without": all_sets(-0.05)}


def write(path, series=TWO, **changes):
    settings = {"metric": "accuracy", "model": "runs/sst2", "overwrite": True}
    return write_report(path, series, **{**settings, **changes})
