import math
import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_layerdrop.tasks.metrics import compute_metrics_for, glue_metric
from hf_layerdrop.tasks.registry import TASKS

# For all classifications: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
PREDICTED = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
ACTUAL = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
ACCURACY = (3 + 4) / 10
F1 = 2 * 3 / (2 * 3 + 1 + 2)
MATTHEWS = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))

# Means 2.75 and 2.5; the products of the deviations sum to 5.5, their squares to 8.75 and 5.
SCORED = [1.0, 2.0, 3.0, 5.0]
RATED = [1.0, 3.0, 2.0, 4.0]
PEARSON = 5.5 / math.sqrt(8.75 * 5)
# Ranks 1, 2, 3, 4 and 1, 3, 2, 4: the squared differences sum to 2, and 1 - 6 * 2 / (4 * (16 - 1)) = 0.8.
SPEARMAN = 0.8

EXPECTED = {
    "cola": {"matthews_correlation": MATTHEWS},
    "sst2": {"accuracy": ACCURACY},
    "mrpc": {"accuracy": ACCURACY, "f1": F1},
    "stsb": {"pearson": PEARSON, "spearmanr": SPEARMAN},
    "qqp": {"accuracy": ACCURACY, "f1": F1},
    "mnli": {"accuracy": ACCURACY},
    "qnli": {"accuracy": ACCURACY},
    "rte": {"accuracy": ACCURACY},
    "wnli": {"accuracy": ACCURACY},
}


def values_of(name):
    return (SCORED, RATED) if TASKS[name].is_regression else (PREDICTED, ACTUAL)


@pytest.mark.parametrize("name", TASKS)
def test_metrics_equal_their_definitions(name):
    predictions, references = values_of(name)
    computed = glue_metric(name).compute(predictions=predictions, references=references)
    assert computed == pytest.approx(EXPECTED[name], abs=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_trainer_gets_them_from_logits(name):
    predictions, references = values_of(name)
    logits = np.array(predictions)[:, None] if TASKS[name].is_regression else np.eye(3)[predictions] - 5
    with_hidden_states = (logits, np.zeros((len(logits), 7)))  # as BART returns
    for outputs in (logits, with_hidden_states):
        computed = compute_metrics_for(TASKS[name])(EvalPrediction(outputs, np.array(references)))
        assert computed == pytest.approx(EXPECTED[name], abs=1e-6)
    assert all(type(value) is float for value in computed.values())


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb"])
@pytest.mark.filterwarnings("error")
def test_a_constant_prediction_gives_a_number(name):
    _, references = values_of(name)
    computed = glue_metric(name).compute(predictions=[0] * len(references), references=references)
    share_of_zeros = references.count(0) / len(references)
    expected = {metric: share_of_zeros if metric == "accuracy" else 0.0 for metric in TASKS[name].metrics}
    assert computed == expected


def test_f1_is_of_class_one():
    flipped = [1 - value for value in PREDICTED], [1 - value for value in ACTUAL]
    computed = glue_metric("mrpc").compute(predictions=flipped[0], references=flipped[1])
    assert computed["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))


def test_no_socket_is_opened_and_processes_do_not_meet(tmp_path):
    code = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from hf_layerdrop.tasks.metrics import glue_metric
metric = glue_metric("mrpc")
metric.add_batch(predictions=[1], references=[1])
metric.add_batch(predictions=[0], references=[1])
print(metric.compute()["accuracy"])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if name != "HF_HUB_OFFLINE"}
    start = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", code], **start) for _ in range(2)]
    for process in running:
        output, errors = process.communicate()
        assert output.strip() == "0.5", errors
    left = [path for path in tmp_path.rglob("*.arrow*") if path.is_file()]
    assert not left
