"""Tasks as data: their columns, labels and metrics, where their rows come from, how they become model inputs."""

from hf_layerdrop.tasks.columns import all_texts
from hf_layerdrop.tasks.data import TaskData, load_task_data, local_files
from hf_layerdrop.tasks.embedded import embedded_sst2
from hf_layerdrop.tasks.encoding import MAX_LENGTH, padding_collator, tokenize
from hf_layerdrop.tasks.kind import ROW_NUMBERS, Generation, Kind
from hf_layerdrop.tasks.metrics import compute_metrics_for, glue_metric
from hf_layerdrop.tasks.task import MORE_TASKS, TASKS, Task, custom_task, find_task, load_task, task_names, with_dataset

__all__ = [
    "MAX_LENGTH",
    "MORE_TASKS",
    "ROW_NUMBERS",
    "TASKS",
    "Generation",
    "Kind",
    "Task",
    "TaskData",
    "all_texts",
    "compute_metrics_for",
    "custom_task",
    "embedded_sst2",
    "find_task",
    "glue_metric",
    "load_task",
    "load_task_data",
    "local_files",
    "padding_collator",
    "task_names",
    "tokenize",
    "with_dataset",
]
