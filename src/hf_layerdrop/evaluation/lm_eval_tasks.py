"""Quality against depth by tasks of EleutherAI's harness: each sub-network in place, no checkpoint is written."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_layerdrop.errors import TaskError, require, said_by
from hf_layerdrop.evaluation.confidence import DEVIATIONS, Rows, interval_of
from hf_layerdrop.evaluation.evaluate import listed_depths
from hf_layerdrop.evaluation.model_or_trainer import eval_mode
from hf_layerdrop.evaluation.parameter_counts import parameters_of
from hf_layerdrop.evaluation.random_streams import unmoved_streams
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.collection import SubNetworkResults
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_SHARES = ("acc", "acc_norm", "exact_match")  # of rows that are right
_DRAWS = 1000  # of the bootstrap by which the harness finds errors that have no formula; by default it takes 100,000


def evaluate_lm_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    depths: Iterable[KeepLayers],
    task_folder: str | os.PathLike[str] | None = None,
    few_shot: int | None = None,
    limit: float | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    chat_template: bool = False,
    done: Callable[[list[SubNetworkResult]], None] | None = None,
) -> SubNetworkResults:
    """Measure sub-networks of a language model on tasks of lm-evaluation-harness, and return one record each.

    The harness runs once for each of ``depths``, on the model in memory. Metrics are called ``<task>_<metric>``, with
    the harness's filter behind where there is one (``gsm8k_exact_match_strict-match``). A share of right rows has
    Wilson's interval; another metric that of the harness's standard error. The model is as before afterwards, and no
    random stream is moved.

    Args:
        model: A causal or an encoder-decoder language model.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or groups, with wildcards: ``["hellaswag", "mmlu_*"]``.
        depths: The sub-networks, each in any form of ``keep_layers``.
        task_folder: Folder of task files (YAML) of your own, beside those of the harness.
        few_shot: Examples in each prompt; None is what the task says.
        limit: Only so many rows of each task, below 1 a share of them; for a first look.
        batch_size: Rows a batch.
        max_length: Most tokens of a prompt with what follows; None takes the positions that the config names.
        chat_template: Whether prompts go through the tokenizer's chat template.
        done: Gets all records so far after each sub-network.

    Raises:
        KeepLayersError: If one of ``depths`` cannot be read or does not fit the model; nothing was run then.
        MissingExtraError: If lm_eval is not installed.
        TaskError: If a task is unknown or cannot be loaded, or the model generates no text.
    """
    require("lm_eval")
    _check_asked(tokenizer, few_shot, limit, chat_template)
    if not model.can_generate():
        raise TaskError(
            f"A {type(model).__name__} generates no text, and the tasks of lm_eval are for language models: give one "
            "(...ForCausalLM, ...ForConditionalGeneration), or measure it by evaluate_depths."
        )
    cutter = Cutter(model)
    kept = [cutter.parse(spec) for spec in listed_depths(depths)]
    for layers in kept:
        cutter.check(layers)
    limit = int(limit) if limit is not None and limit >= 1 else limit
    with _quiet_harness():
        manager, names = _found(tasks, task_folder)
        results: list[SubNetworkResult] = []
        for layers in kept:
            with unmoved_streams(), eval_mode(model), cutter.sub_network(layers):
                scores = _scores(
                    model,
                    tokenizer,
                    names,
                    manager,
                    {"batch_size": batch_size, "max_length": max_length},
                    {"num_fewshot": few_shot, "limit": limit, "apply_chat_template": chat_template},
                )
            results.append(_record(cutter, model, layers, scores))
            if done is not None:
                done([*results])
    return SubNetworkResults(results)


def _check_asked(
    tokenizer: PreTrainedTokenizerBase, few_shot: int | None, limit: float | None, chat_template: bool
) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TaskError("lm_eval's tasks are judged by one process, and this is a launch of several: start it without.")
    if limit is not None and limit <= 0:
        raise TaskError(f"limit is {limit:g}; give a number of rows, or a share below 1.")
    if limit is not None and limit > 1 and limit != int(limit):
        raise TaskError(f"limit is {limit:g}; give a whole number of rows, or a share below 1.")
    if few_shot is not None and few_shot < 0:
        raise TaskError(f"few_shot is {few_shot}; give 0 or more examples.")
    if chat_template and not tokenizer.chat_template:
        raise TaskError("chat_template is asked for, but the tokenizer has none: leave it out.")


def _found(tasks: Sequence[str], folder: str | os.PathLike[str] | None) -> tuple[TaskManager, list[str]]:
    """Return what loads the tasks, and their names; own tasks alone are found without reading the harness's 14,000."""
    from lm_eval.tasks import TaskManager

    if isinstance(tasks, str) or not tasks:
        raise TaskError(f'tasks is {tasks!r}; give a list of names, such as tasks=["hellaswag"].')
    if folder is not None and not os.path.isdir(folder):
        raise TaskError(f"There is no folder {str(folder)!r} with task files (YAML); check the path.")
    manager = TaskManager(include_path=folder and str(folder), include_defaults=folder is None)
    if folder is not None and not all(manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=str(folder))
    names = list(dict.fromkeys(name for task in tasks for name in _of_pattern(task, manager)))
    try:
        manager.load(names)
    except Exception as error:  # its data or a package that it needs could not be had, or its file is wrong
        reason = f"lm_eval could not load {', '.join(names)} ({said_by(error)})"
        raise TaskError(f"{reason}: check the network, the task's file, and what it needs installed.") from error
    return manager, names


def _of_pattern(task: str, manager: TaskManager) -> list[str]:
    if names := manager.match_tasks([task]):
        return names
    close = difflib.get_close_matches(task, manager.all_tasks, n=1)
    hint = f" (nearest: {close[0]})" if close else ""
    raise TaskError(
        f"lm_eval has no task {task!r}{hint}; `lm_eval ls tasks` lists them, and a folder of task files adds your own."
    )


def _scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: list[str],
    manager: TaskManager,
    sizes: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Let the harness judge the model as it is now."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # Anew for each sub-network: it reads the config. It keeps nothing between them, since no cache is asked for.
    judged = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **sizes)  # which it gives a token to pad with
    try:
        found = simple_evaluate(
            judged, tasks=names, task_manager=manager, bootstrap_iters=_DRAWS, log_samples=False, **asked
        )
    except ValueError as error:  # a task that runs code, or wants what is no text
        raise TaskError(f"lm_eval refuses {', '.join(names)}: {said_by(error)}.") from error
    assert found is not None  # but on later ranks of a launch, which is refused
    return found


def _record(
    cutter: Cutter, model: PreTrainedModel, kept: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]
) -> SubNetworkResult:
    metrics, rows, intervals = {}, {}, {}
    for task, scores in {**found["results"], **found.get("groups", {})}.items():
        count = int(found["n-samples"].get(task, {}).get("effective", 0))
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("stderr") or isinstance(value, str):
                continue
            name = f"{task}_{metric}" + (f"_{filtered}" if filtered != "none" else "")
            metrics[name] = float(value)
            if count:
                rows[name] = count
            if interval := _interval(metric, float(value), scores.get(f"{metric}_stderr,{filtered}"), count):
                intervals[name] = interval
    return SubNetworkResult(
        keep_layers=dict(kept),
        parameters=parameters_of(cutter, model, kept),
        metrics=metrics,
        seconds_per_batch=None,
        layer_forwards=sum(map(len, kept.values())),
        rows=rows,
        intervals=intervals,
    )


def _interval(metric: str, value: float, error: Any, count: int) -> tuple[float, float] | None:
    if metric in _SHARES and (share := interval_of("accuracy", value, Rows(count, one_label=True))):
        return share
    if not isinstance(error, int | float) or not math.isfinite(error):
        return None
    return value - DEVIATIONS * error, value + DEVIATIONS * error


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep what the harness says of a model in memory to itself."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
