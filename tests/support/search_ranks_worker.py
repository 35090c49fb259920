"""What each of two processes does for test_search_ranks.py: search and measure together, and as one process does.

Inside of `ranks_of_launch` a search is one process's own: that is what the records of both are compared with.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

import hf_layerdrop.evaluation.divided
import hf_layerdrop.evaluation.ranks
from conftest import build
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.evaluation.ranks import ranks_of_launch
from hf_layerdrop.search.search import search_layers
from hf_layerdrop.training.callbacks import DepthEvaluationCallback
from ranks import Case, run_cases
from searching import BART, BERT, examples, half, labelled, search

SEARCHES: list[tuple[str, str, dict[str, Any]]] = [
    ("exhaustive", BERT, {"num_hidden_layers": 6}),
    ("exhaustive", BART, {}),
    ("beam", BERT, {}),
    ("leave_one_out", BERT, {}),
    ("spread", BERT, {}),  # a single candidate: one rank has nothing to do
]
DIRECTORY = Path(sys.argv[1])


def counted(model: Any, call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call gives, and how many layers ran in this process."""
    runs: list[int] = []
    hooks = [
        module.register_forward_hook(lambda *_: runs.append(1))
        for name, module in model.named_modules()
        if name.endswith(("classifier", "lm_head"))
    ]
    found = call()
    for hook in hooks:
        hook.remove()
    return found, len(runs)


def alone(model: Any, call: Callable[[], Any]) -> Any:
    with ranks_of_launch(model) as ranks:
        assert ranks.size == 2
        return call()


def compared(model: Any, call: Callable[[], Any]) -> dict[str, object]:
    one, runs_alone = counted(model, partial(alone, model, call))
    both, runs = counted(model, call)
    return {"same": both == one, "found": both, "runs": runs, "runs alone": runs_alone}


def of_strategy(name: str, head: str, layers: dict[str, Any], rank: int, size: int) -> dict[str, object]:
    model, test = build(head, **layers), labelled(head, 1, 7)
    settings = {"strategy": name, "depth": half(head), "test_dataset": test, **({"swaps": 1} if name == "beam" else {})}
    return compared(model, lambda: search(model, labelled(head), **settings).to_dict())


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def trainer_for(model: Any, rows: int) -> Trainer:
    folder = tempfile.mkdtemp(dir=DIRECTORY)
    arguments = TrainingArguments(
        folder, per_device_eval_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    assert arguments.world_size == 2
    return Trainer(model, arguments, eval_dataset=examples(rows), compute_metrics=accuracy)


def of_trainer(rank: int, size: int) -> dict[str, object]:
    """Search on rows that fill no number of batches, let alone one that two ranks can share."""
    trainer = trainer_for(build(BERT), 27)
    settings = {"strategy": "exhaustive", "depth": 2, "metric": "loss", "progress": False}
    return compared(trainer.model, lambda: search_layers(trainer, **settings).to_dict())


def of_function(rank: int, size: int) -> dict[str, object]:
    model = build(BERT)
    score = lambda model: float(model(**labelled()[0]).logits.sum())  # noqa: E731
    settings = {"strategy": "beam", "metric": None, "test_dataset": None, "evaluate": score}
    return compared(model, lambda: search(model, None, **settings).to_dict())


def of_budget(rank: int, size: int) -> dict[str, object]:
    """Every rank measures another time: the depth that is chosen, and the record, are those of rank 0."""
    model = build(BERT)
    found = search(model, depth=None, max_latency_ms=1e6, strategy="beam", swaps=1)
    return {"latency": found.latency_ms, "depth": len(found.keep_layers["encoder"])}


def records(model: Any, data: Any, **settings: Any) -> list[dict[str, Any]]:
    results = evaluate_depths(model, data, depths=[4, 3, [0, 1], 1, [0, 1, 3]], progress=False, **settings)
    return [{**result.to_dict(), "seconds_per_batch": None} for result in results]


def of_depths(rank: int, size: int) -> dict[str, object]:
    model = build(BERT)
    return compared(model, lambda: records(model, labelled(), metric="accuracy"))


def of_shuffled_depths(rank: int, size: int) -> dict[str, object]:
    """A loader that shuffles draws what rank 0 would draw."""
    model = build(BERT)
    torch.manual_seed(rank)
    loader = torch.utils.data.DataLoader(examples(10), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    found = records(model, loader, metric="loss")
    return {"found": found, "same": torch.equal(before, torch.get_rng_state())}


def of_depths_by_trainer(rank: int, size: int) -> dict[str, object]:
    """Divided by sub-networks: where Trainer divides the batches, its own loss is another than in one process."""
    trainer = trainer_for(build(BERT), 27)
    return compared(trainer.model, lambda: records(trainer, None))


def of_depths_within_an_evaluation(rank: int, size: int) -> dict[str, object]:
    """A callback measures depths on the batches that Trainer has given to each rank, as it does the whole model."""
    trainer = trainer_for(build(BERT), 27)
    trainer.add_callback(DepthEvaluationCallback([2, 4]))
    found, runs = counted(trainer.model, trainer.evaluate)
    by_depth = {f"{name}accuracy": found[f"eval_{name}accuracy"] for name in ("", "depth_4_", "depth_2_")}
    return {**by_depth, "loss": found["eval_loss"] == found["eval_depth_4_loss"], "runs": runs}


def of_journal(rank: int, size: int) -> dict[str, object]:
    """One file, which one process goes on from, and two go on from what one has left."""
    model, journal = build(BERT), DIRECTORY / "both.journal"
    found = search(model, strategy="exhaustive", journal=journal)
    again = search(model, strategy="exhaustive", journal=journal)
    one = alone(model, lambda: search(model, strategy="exhaustive"))
    half = DIRECTORY / "half.journal"
    if rank == 0:
        half.write_text("".join(journal.read_text().splitlines(True)[:4]))
    continued, runs = counted(model, lambda: search(model, strategy="exhaustive", journal=half))
    return {
        "same": found == one,
        "from journal": [found.from_journal, again.from_journal, continued.from_journal],
        "scores": [found.score, again.score, continued.score],
        "runs": runs,
    }


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def of_failure(kind: type[BaseException], rank: int, size: int) -> dict[str, object]:
    """Rank 1 fails in its second candidate, and each rank can search again."""
    model, journal, calls = build(BERT), DIRECTORY / f"{kind.__name__}.journal", []

    def evaluate(model: Any) -> float:
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise kind("no more")
        return float(model(**labelled()[0]).logits.sum())

    settings = {"strategy": "exhaustive", "metric": "sum", "test_dataset": None, "journal": journal}
    said = raised(lambda: search(model, evaluate=evaluate, **settings))
    kept = len(journal.read_text().splitlines())
    found = search(model, evaluate=evaluate, **settings)
    return {"said": said, "kept": kept, "from journal": found.from_journal, "score": found.score}


def of_failure_at_the_end(rank: int, size: int) -> dict[str, object]:
    model = build(BERT)

    def fail() -> None:
        with ranks_of_launch(model):
            if rank == 0:
                raise ValueError("the last line")

    return {"said": raised(fail)}


def of_other_models(rank: int, size: int) -> dict[str, object]:
    return {"said": raised(lambda: search(build(BERT, seed=rank)))}


def of_other_data(rank: int, size: int) -> dict[str, object]:
    return {"said": raised(lambda: search(build(BERT), labelled(first=rank)))}


def of_other_settings(rank: int, size: int) -> dict[str, object]:
    return {"said": raised(lambda: search(build(BERT), depth=2 + rank, strategy="spread"))}


def of_absence(rank: int, size: int) -> dict[str, object]:
    hf_layerdrop.evaluation.ranks.RANKS_TIMEOUT = timedelta(seconds=0.5)
    said = "nothing" if rank else raised(lambda: search(build(BERT)))
    hf_layerdrop.evaluation.ranks.RANKS_TIMEOUT = timedelta(minutes=1)
    torch.distributed.barrier()
    return {"said": said, "after": search(build(BERT), strategy="spread").score}


CASES: dict[str, Case] = {
    **{f"{name}, {head}": partial(of_strategy, name, head, layers) for name, head, layers in SEARCHES},
    "trainer": of_trainer,
    "function": of_function,
    "budget": of_budget,
    "depths": of_depths,
    "shuffled": of_shuffled_depths,
    "depths by trainer": of_depths_by_trainer,
    "depths within an evaluation": of_depths_within_an_evaluation,
    "journal": of_journal,
    "failure": partial(of_failure, ValueError),
    "interrupt": partial(of_failure, KeyboardInterrupt),
    "failure at the end": of_failure_at_the_end,
    "other models": of_other_models,
    "other data": of_other_data,
    "other settings": of_other_settings,
    "absence": of_absence,
}

if __name__ == "__main__":
    hf_layerdrop.evaluation.divided.SECONDS_BETWEEN_MEETINGS = 0.0
    run_cases(CASES, sys.argv[2:])
