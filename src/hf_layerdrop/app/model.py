"""One model in memory, cut in place to answer at any depth: what the page shows, without a page."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel

from hf_layerdrop.app.heads import Found, Head, Texts, Tools, find_head, lines_of
from hf_layerdrop.app.measured import Measured, find_measured
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.checkpoints.model_class import find_class
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer
from hf_layerdrop.errors import CheckpointError, TaskError
from hf_layerdrop.evaluation.stopwatch import Stopwatch
from hf_layerdrop.models.auto import load_checkpoint
from hf_layerdrop.pruning.prune import count_parameters, sub_network
from hf_layerdrop.samplers.keep_layers import KeepLayers
from hf_layerdrop.training.trainers import positions_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_layerdrop.models.arguments import FromPretrained

WARM_UP, REPEATS = 1, 5
MOST_NEW_TOKENS = 256
LONGEST_TEXT = 20_000  # letters, before any is made a token


@dataclass(frozen=True)
class Answer:
    """What a sub-network answers, and what that costs.

    Attributes:
        kept: The layers that ran, by stack.
        found: The answer.
        tokens: How many tokens the timed input has.
        milliseconds: Median time of a forward over them, of this sub-network.
        whole_milliseconds: The same of the whole model.
        parameters: Of the sub-network.
        seconds: How long the answer took; of generated text this is the time of all its forwards.
    """

    kept: Mapping[str, tuple[int, ...]]
    found: Found
    tokens: int
    milliseconds: float
    whole_milliseconds: float
    parameters: int
    seconds: float


class AppModel:
    """A model that answers at any depth; requests of several threads take turns.

    Args:
        model: The model, of which there is no second copy.
        tokenizer: Its tokenizer.
        name: What it is called.
        measured: What is known of its sub-networks.

    Raises:
        UnsupportedModelError: It has no head that can be shown, or its layers cannot be taken out.
        CheckpointError: Its tokenizer has no mask token, and its head needs one.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, name: str, measured: Measured | None = None) -> None:
        self.head: Head = find_head(type(model))
        self.name, self.measured = name, measured or Measured()
        self.depths = depths_of(model)
        self.parameters = count_parameters(model)
        if "{mask}" in self.head.labels[0] and tokenizer.mask_token is None:
            raise CheckpointError(f"The tokenizer of {name!r} has no mask token: copy the one of its training.")
        pipeline = self.head.pipeline and transformers.pipeline(
            self.head.pipeline, model, tokenizer=tokenizer, device=model.device
        )
        self._tools = Tools(model, tokenizer, pipeline or None)
        self._positions = positions_of(model)
        with sub_network(model, "all"):  # a model that cannot be cut is refused here
            pass

    @property
    def labels(self) -> tuple[str, ...]:
        """What the texts are that it reads."""
        return tuple(self._with_mask(text) for text in self.head.labels)

    @property
    def example(self) -> tuple[str, ...]:
        """A text for each of `labels`."""
        return tuple(self._with_mask(text) for text in self.head.example)

    def answer(self, texts: Sequence[str], keep_layers: KeepLayers, new_tokens: int = 40) -> Answer:
        """Answer by a sub-network, and time its forward and that of the whole model on the same input.

        Args:
            texts: One or two texts, as `labels` says.
            keep_layers: The layers to keep.
            new_tokens: Most tokens of a generated text.

        Raises:
            KeepLayersError: There are no such layers.
            TaskError: A text is missing or too long, or more tokens are asked for than there are positions.
            UnsupportedModelError: The model cannot be cut so.
        """
        both: Texts = (texts[0], texts[1] if len(texts) > 1 else "")
        inputs = self._encoded(both, new_tokens)
        model = self._tools.model
        with torch.no_grad(), sub_network(model, keep_layers) as kept:
            start = time.perf_counter()
            found = self.head.answer(self._tools, both, new_tokens)
            seconds = time.perf_counter() - start
            milliseconds, parameters = self._milliseconds(inputs), count_parameters(model)
        with torch.no_grad(), sub_network(model, "all"):  # outside of a block another thread's cut would be timed
            whole = self._milliseconds(inputs)
        return Answer(kept, found, inputs["input_ids"].shape[1], milliseconds, whole, parameters, seconds)

    def _encoded(self, texts: Texts, new_tokens: int) -> dict[str, torch.Tensor]:
        """Return the inputs that are timed, after a look at all texts."""
        for label, text in zip(self.labels[: self.head.needs], texts, strict=False):
            if not text.strip():
                raise TaskError(f"{label!r} is empty: write something there.")
        if (letters := max(map(len, texts))) > LONGEST_TEXT:
            raise TaskError(f"A text has {letters:,} letters, and the app reads at most {LONGEST_TEXT:,}: shorten it.")
        if not 1 <= new_tokens <= MOST_NEW_TOKENS:
            raise TaskError(f"{new_tokens} new tokens were asked for: the app writes 1 to {MOST_NEW_TOKENS}.")
        first, *others = (self._tools.encode(*row) for row in self._rows(texts))
        longest = max(one["input_ids"].shape[1] for one in (first, *others))
        self._check_positions(longest, new_tokens if self.head.generates else 0)
        known = inspect.signature(self._tools.model.forward).parameters
        return {name: value for name, value in first.items() if name in known}

    def _rows(self, texts: Texts) -> list[tuple[str, ...]]:
        """Return what is encoded together: the lines of sentences that are compared each for itself."""
        if self.head.auto == "AutoModel":
            return [(line,) for line in (texts[0], *lines_of(texts[1]))]
        return [tuple(text for text in texts if text.strip())]

    def _check_positions(self, tokens: int, new: int) -> None:
        limit = self._positions
        if limit is None:
            return
        if tokens > limit:
            raise TaskError(f"The text has {tokens} tokens, and the model has positions for {limit}: shorten it.")
        decoder_alone = not self._tools.model.config.is_encoder_decoder
        room = limit - (tokens if decoder_alone else 1)
        if new > room:
            after = f"after the {tokens} tokens of the text " if decoder_alone else ""
            raise TaskError(
                f"{new} new tokens were asked for, and {after}the model has positions for {room}: ask for fewer"
                f"{', or shorten the text' if decoder_alone else ''}."
            )

    def _milliseconds(self, inputs: dict[str, torch.Tensor]) -> float:
        model = self._tools.model
        if self.head.generates and model.config.is_encoder_decoder:  # one token of the decoder after all of the encoder
            inputs = {**inputs, "decoder_input_ids": inputs["input_ids"][:, :1]}
        times = [_timed(model, inputs) for _ in range(WARM_UP + REPEATS)]
        return 1000 * median(watch.seconds for watch in times[WARM_UP:])

    def _with_mask(self, text: str) -> str:
        return text.replace("{mask}", str(self._tools.tokenizer.mask_token))


def _timed(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Stopwatch:
    watch = Stopwatch(model.device)
    model(**inputs)
    return watch.stop()


def load_app_model(model: str, **where: Unpack[FromPretrained]) -> AppModel:
    """Load a checkpoint to be shown; its head and its tokenizer are looked at before its weights are read.

    Args:
        model: A checkpoint folder, or the id of a model on the Hub.
        **where: Passed to ``from_pretrained``: ``revision``, ``token``, ``trust_remote_code``, ``use_safetensors``.

    Raises:
        CheckpointError: It cannot be read, or has no tokenizer.
        UnsupportedModelError: It has no head that can be shown, or its layers cannot be taken out.
    """
    find_head(find_class(model, where))
    tokenizer = load_tokenizer(model, **{name: value for name, value in where.items() if name != "use_safetensors"})
    loaded = load_checkpoint(model, **where)
    measured = find_measured(model, where.get("revision"), depths_of(loaded))
    return AppModel(loaded, tokenizer, name=Path(model).name if Path(model).is_dir() else model, measured=measured)
