"""What all arms of a study share: encoded rows, tokenizer and the config of the model, made once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.tasks.columns import all_texts
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.tasks.task import TaskData
from hf_layerdrop.training.from_config import ModelFromConfig, describe_model
from reproduction.errors import ReproductionError
from reproduction.plan import Run
from reproduction.pretrained import checkpoint_of
from reproduction.rows import Source, load_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_LONGEST = 512


@dataclass(frozen=True)
class SharedInputs:
    """Encoded rows, tokenizer, config, and the checkpoint that arms begin with, if they do."""

    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    checkpoint: Path | None = None


def described(run: Run) -> ModelFromConfig:
    """Return the model of a run's size, without a vocabulary."""
    size = run.size
    positions = max(size.max_length or 0, size.max_target_length or 0) or _LONGEST
    model = describe_model(size.model, load_task(run.study.task).head, positions=positions, vocab_size=size.vocab_size)
    return replace(model, fields={**model.fields, **size.fields})


def _arranged(data: TaskData, run: Run) -> TaskData:
    """Keep the first tokens of the training text; where steps take rows of about one length, so does measuring."""
    train, validation = data.train, data.validation
    if run.size.data.train_tokens and train is not None:
        inputs = run.size.data.train_tokens // len(train[0]["input_ids"])
        if len(train) < inputs:
            raise ReproductionError(
                f"Study {run.study.name} wants {run.size.data.train_tokens:,} tokens of training text, but there are "
                f"{len(train)} inputs of {len(train[0]['input_ids'])}: give more text."
            )
        train = train.select(range(inputs))
    if run.training.get("train_sampling_strategy") == "group_by_length":
        validation = {name: _by_length(rows) for name, rows in validation.items()}
    return replace(data, train=train, validation=validation)


def _by_length(rows: Dataset) -> Dataset:
    lengths = [len(tokens) for tokens in rows["input_ids"]]
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))


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
        checkpoint = checkpoint_of(size.pretrained) if size.pretrained else None
        tokenizer = load_tokenizer(str(checkpoint)) if checkpoint else self._tokenizer(run, model, rows)
        encoded = rows.task.encode(
            rows, tokenizer, max_length=size.max_length, max_target_length=size.max_target_length
        )
        config = model.make_config(tokenizer, **rows.task.kind.settings(rows.task))
        return SharedInputs(_arranged(encoded, run), tokenizer, config, checkpoint)

    def _tokenizer(self, run: Run, model: ModelFromConfig, rows: TaskData) -> PreTrainedTokenizerBase:
        """Load the tokenizer that was trained before, or train it; one of another study has to be there."""
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
