"""What all arms of a study share: encoded rows, tokenizer and the config of the model, made once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_layerdrop.tasks.columns import all_texts
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.from_config import ModelFromConfig, describe_model
from reproduction.errors import ReproductionError
from reproduction.plan import Run
from reproduction.rows import Source, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_LONGEST = 512


@dataclass(frozen=True)
class SharedInputs:
    """Encoded rows, tokenizer and config."""

    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig


def described(run: Run) -> ModelFromConfig:
    """Return the model of a run's size, without a vocabulary."""
    size = run.size
    positions = max(size.max_length or 0, size.max_target_length or 0) or _LONGEST
    model = describe_model(size.model, load_task(run.study.task).head, positions=positions, vocab_size=size.vocab_size)
    return replace(model, fields={**model.fields, **size.fields})


class InputsOfStudies:
    """The shared inputs of studies, each loaded when its first run is to be trained."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._known: dict[str, SharedInputs] = {}

    def of(self, run: Run) -> SharedInputs:
        """Return the inputs of a run."""
        if run.study.name not in self._known:
            self._known[run.study.name] = self._load(run)
        return self._known[run.study.name]

    def _load(self, run: Run) -> SharedInputs:
        size = run.size
        rows = load_rows(run.study, size.data, self._source)
        model = described(run)
        tokenizer = self._tokenizer(run, model, rows)
        encoded = rows.task.encode(
            rows, tokenizer, max_length=size.max_length, max_target_length=size.max_target_length
        )
        config = model.make_config(tokenizer, **rows.task.kind.settings(rows.task))
        return SharedInputs(encoded, tokenizer, config)

    def _tokenizer(self, run: Run, model: ModelFromConfig, rows: TaskData) -> PreTrainedTokenizerBase:
        """Load the tokenizer that was trained before, or train it; one of another study has to be there."""
        from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
        from hf_layerdrop.evaluation.ranks import processes

        owner = run.size.tokenizer_of or run.study.name
        folder = self._folder / f"tokenizer-{owner}-{run.size_name}{'-short' if run.short else ''}"
        with processes().main_process_first():  # the other processes of a launch find it there
            if (folder / "tokenizer.json").is_file():
                return load_tokenizer(str(folder))
            if owner != run.study.name:
                raise ReproductionError(
                    f"The tokenizer of study {owner} is not in {str(folder)!r}: run one of its arms first."
                )
            assert rows.train is not None
            tokenizer = model.make_tokenizer(all_texts(rows.train))
            tokenizer.save_pretrained(folder)
            return tokenizer
