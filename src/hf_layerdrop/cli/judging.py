"""sweep --lm-eval: depths judged by tasks of EleutherAI's harness in place of a validation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_layerdrop.cli.depths import KeptByStack
from hf_layerdrop.cli.recall import Asked
from hf_layerdrop.cli.reports import Measured
from hf_layerdrop.errors import TaskError, require
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import metric_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LmEvalTasks = Annotated[
    str | None,
    typer.Option(
        "--lm-eval",
        metavar="LIST",
        help="Tasks of lm-evaluation-harness in place of a --task, such as hellaswag,arc_easy.",
        show_default=False,
    ),
]
LmEvalFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with task files of your own for --lm-eval.", show_default=False),
]
FewShot = Annotated[
    int | None,
    typer.Option(min=0, help="Examples in each prompt of --lm-eval.", show_default="what the task says"),
]
Limit = Annotated[
    float | None,
    typer.Option(metavar="N", help="So many rows of each task of --lm-eval; below 1 a share.", show_default="all"),
]
ChatTemplate = Annotated[bool, typer.Option("--chat-template", help="Prompts of --lm-eval as the model chats.")]

_BEFORE = ("acc_norm", "acc", "exact_match")  # what stands for a task that has several metrics


@dataclass(frozen=True)
class LmEval:
    """What the options of --lm-eval ask for."""

    tasks: Sequence[str]
    folder: Path | None
    few_shot: int | None
    limit: float | None
    chat_template: bool

    def check(self, asked: Asked) -> bool:
        """Return whether the harness is asked for.

        Raises:
            TaskError: A task is asked for as well, or options of the harness without its tasks.
            MissingExtraError: lm_eval is not installed.
        """
        if not self.tasks:
            if self.folder or self.few_shot is not None or self.limit is not None or self.chat_template:
                raise TaskError(
                    "--lm-eval-folder, --few-shot, --limit and --chat-template are for --lm-eval: name its tasks too, "
                    "such as --lm-eval hellaswag."
                )
            return False
        data = (asked.dataset, asked.dataset_config, asked.text_columns, asked.label_column)
        if asked.task or asked.validation_file or any(data) or asked.max_target_length or asked.num_beams:
            raise TaskError("--lm-eval brings its own data and lengths: leave out --task and the options of its data.")
        if self.limit is not None and self.limit <= 0:
            raise TaskError(f"--limit is {self.limit:g}; give a number of rows, or a share below 1.")
        require("lm_eval")
        return True

    def measure(
        self,
        model: str,
        depths: Sequence[KeptByStack],
        loading: Mapping[str, Any],
        sizes: tuple[int, int | None],
        done: Callable[[list[SubNetworkResult]], None],
        leave_out: Callable[[Sequence[KeptByStack], PreTrainedModel], Sequence[KeptByStack]] | None,
    ) -> list[SubNetworkResult]:
        """Load the model to where the work is done, and judge it at each depth, but for those that are left out."""
        from torch import accelerator

        from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
        from hf_layerdrop.evaluation.lm_eval_tasks import evaluate_lm_tasks
        from hf_layerdrop.models.auto import load_checkpoint
        from hf_layerdrop.training.trainers import check_vocabulary

        network, tokenizer = load_checkpoint(model, **loading), load_tokenizer(model, **loading)
        check_vocabulary(network, tokenizer, model)
        if accelerator.is_available():
            network.to(accelerator.current_accelerator())
        batch_size, max_length = sizes
        return evaluate_lm_tasks(
            network,
            tokenizer,
            self.tasks,
            depths=leave_out(depths, network) if leave_out else depths,
            task_folder=self.folder,
            few_shot=self.few_shot,
            limit=self.limit,
            chat_template=self.chat_template,
            batch_size=batch_size,
            max_length=max_length,
            done=done,
        )

    def measured(self, results: Sequence[SubNetworkResult], config: Mapping[str, Any]) -> Measured:
        """Say what was measured; the first metric that is a share of right rows stands for the rest."""
        names = metric_names(results)
        metric = next((name for kind in _BEFORE for name in names if name.endswith(kind)), names[0])
        head = "Seq2SeqLM" if config.get("is_encoder_decoder") else "CausalLM"
        return Measured(metric, head, f"lm_eval's {', '.join(self.tasks)}")
