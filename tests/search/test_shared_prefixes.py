"""Sets that begin alike are run together: how many layers that takes, in how much memory, and with the same scores."""

from __future__ import annotations

import pytest

from conftest import DEPTH, build, recorded_runs
from hf_layerdrop.evaluation.evaluate import Evaluator, evaluate_depths, every_sub_network
from hf_layerdrop.search.space import Space
from searching import BERT, labelled


def test_all_924_sets_of_6_out_of_12_layers_take_1715_layer_forwards_a_batch() -> None:
    model = build(BERT, num_hidden_layers=12)
    data = labelled(batches=2)
    sets = list(Space({"encoder": 12}, {"encoder": 6}).every_set())
    results = []
    with recorded_runs(model) as runs:
        evaluator = Evaluator(model, data, metric="loss", memory_limit=10**7)
        evaluator.measure_in_turn(sets, results.extend)
    assert len(results) == 924
    assert len(runs["encoder"]) == 2 * 1715  # though they are run, and written down, a few at a time
    assert sum(result.layer_forwards for result in results) == 1715
    assert 0 < evaluator.peak <= 10**7


@pytest.mark.parametrize("held", [0, 2, 3, 100])  # what a layer was given is held beside what it gave
def test_a_memory_limit_is_respected_by_computing_again_and_changes_no_score(held: int) -> None:
    model, data = build(BERT), labelled()
    state = 3 * 9 * 16 * 4  # one hidden state: rows, tokens, width, bytes
    sets = every_sub_network({"encoder": DEPTH})
    free = {
        tuple(r.keep_layers["encoder"]): r for r in Evaluator(model, data, metric="loss").measure(sets, progress=False)
    }
    limited = []
    evaluator = Evaluator(model, data, metric="loss", memory_limit=held * state)
    with recorded_runs(model) as runs:
        evaluator.measure_in_turn(sets, limited.extend)
    assert evaluator.peak <= held * state
    assert {tuple(r.keep_layers["encoder"]): r.metrics for r in limited} == {key: r.metrics for key, r in free.items()}
    least, most = 2**DEPTH - 1, DEPTH * 2 ** (DEPTH - 1)
    a_batch = len(runs["encoder"]) / len(data)
    assert {0: a_batch == most, 100: a_batch == least}.get(held, least < a_batch < most)


def test_predictions_count_against_the_memory_limit_and_decide_how_many_sets_run_in_a_pass() -> None:
    sets = every_sub_network({"encoder": DEPTH})

    def passes(limit: int) -> list[int]:
        counts = []
        evaluator = Evaluator(build(BERT), labelled(), metric="accuracy", memory_limit=limit)
        evaluator.measure_in_turn(sets, lambda results: counts.append(len(results)))
        return counts

    a_set = 2 * 3 * (2 * 4 + 8)  # batches, rows, two logits and a label
    assert passes(10**7) == [1, 14]
    assert passes(2 * 4 * a_set) == [1, 4, 4, 4, 2]


def test_held_outputs_are_not_used_for_other_inputs() -> None:
    class Changing(list):
        """Batches that are others each time they are read, whatever the random streams say."""

        reads = 0

        def __iter__(self):
            self.reads += 1
            yield from labelled(batches=2, first=10 * self.reads)

    model, results = build(BERT), []
    data = Changing(labelled())
    evaluator = Evaluator(model, data, metric="loss", memory_limit=10**7)
    evaluator.measure_in_turn([{"encoder": (0,)}, {"encoder": (0, 1)}], results.extend)
    for read, result in enumerate(results, 1):
        alone = evaluate_depths(
            model, labelled(batches=2, first=10 * read), depths=[result.keep_layers], progress=False
        )
        assert result.metrics["loss"] == alone[0].metrics["loss"]
