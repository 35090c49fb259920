"""A model from a few numbers or a config.json, with random weights, and a tokenizer made for its data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.architectures.families import SHAPES, TINY_BY_HEAD, TINY_OTHERWISE, Shape
from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.checkpoints.tokenizers import DEFAULT_SIZE, train_tokenizer
from hf_layerdrop.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TINY = "tiny"
HEAD_WIDTH = 32
POSITIONS = 512
_NAME = re.compile(r"([a-z0-9]+)-(\d+)(?:\+(\d+))?x(\d+)")
_DEFAULT_TOKENIZER = "bpe-marked"


@dataclass(frozen=True)
class ModelFromConfig:
    """What `train` needs to begin with random weights: a config without a vocabulary, and how to get one.

    Attributes:
        name: How the model is called in folder names and tables.
        model_type: The family, as in config.json.
        fields: The other fields of the config.
        vocab_size: Most tokens of a tokenizer that is trained.
        tokenizer: A tokenizer to take instead: a folder, or a name on the Hub.
    """

    name: str
    model_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    vocab_size: int = DEFAULT_SIZE
    tokenizer: str | None = None

    @property
    def shape(self) -> Shape | None:
        """What is known of the family; None for one that only a config.json can describe."""
        return SHAPES.get(self.model_type)

    def make_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Train the tokenizer that goes with the family."""
        kind = self.shape.tokenizer if self.shape else _DEFAULT_TOKENIZER
        return train_tokenizer(texts, kind, vocab_size=self.vocab_size, max_length=self._positions)

    def make_config(self, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedConfig:
        """Return the config for a tokenizer: its size, and the numbers of its special tokens.

        Raises:
            CheckpointError: If the config class refuses a field.
        """
        from transformers import AutoConfig

        end = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        special = {
            "bos_token_id": _first(tokenizer.bos_token_id, tokenizer.cls_token_id),
            "eos_token_id": end,
            "pad_token_id": _first(tokenizer.pad_token_id, end),
        }
        special |= {name: getattr(tokenizer, name) for name in special_fields(self.model_type) - special.keys()}
        try:
            config = AutoConfig.for_model(
                self.model_type, **{**self.fields, "vocab_size": len(tokenizer), **special, **settings}
            )
        except Exception as error:  # of validators of huggingface_hub, which have no common base
            raise CheckpointError(f"{self.name!r} is no config of a {self.model_type}: {error}") from error
        if config.is_encoder_decoder:
            config.decoder_start_token_id = end
            config.forced_eos_token_id = None
        return config

    @property
    def _positions(self) -> int | None:
        if self.shape is None or self.shape.positions not in self.fields:
            return None
        return self.fields[self.shape.positions] - self.shape.spare_positions


def describe_model(
    text: str, head: str, *, positions: int = POSITIONS, vocab_size: int = DEFAULT_SIZE, tokenizer: str | None = None
) -> ModelFromConfig:
    """Read ``tiny-12x128``, ``llama-6x64``, ``bart-6+3x64``, or the path of a config.json.

    Args:
        text: A family, or ``tiny`` for the one that fits the task; depth (of encoder + decoder, if they differ) and
            width.
        head: The head of the model; it decides what ``tiny`` is.
        positions: Most tokens that the model shall take.
        vocab_size: Most tokens of a tokenizer that is trained.
        tokenizer: A tokenizer to take instead.

    Raises:
        CheckpointError: If it is neither, or the family is unknown.
    """
    if is_model_file(text):
        return _from_file(Path(text), vocab_size, tokenizer)
    match = _NAME.fullmatch(text)
    family = match and (TINY_BY_HEAD.get(head, TINY_OTHERWISE) if match[1] == TINY else match[1])
    if match is None or family not in SHAPES:
        raise CheckpointError(
            f"{text!r} is no model: give the path of a config.json, or a family with depth and width, such as "
            f"tiny-12x128, of {', '.join([TINY, *SHAPES])}."
        )
    depth, other_depth, width = (int(number) if number else 0 for number in match.groups()[1:])
    fields = _fields(SHAPES[family], (depth, other_depth or depth), width, positions, text)
    return ModelFromConfig(text, family, fields, vocab_size, tokenizer)


def names_model(text: str) -> bool:
    """Tell the name or the file of a model from a file of options."""
    return _NAME.fullmatch(text) is not None or is_model_file(text)


def is_model_file(text: str) -> bool:
    """Tell whether this is the config.json of a model."""
    path = Path(text)
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        values = read_json(path)
    except Unreadable:
        return False
    return isinstance(values, dict) and "model_type" in values


def special_fields(model_type: str) -> set[str]:
    """Return the fields of a family's config that number special tokens, whose defaults a small vocabulary may lack."""
    from transformers import CONFIG_MAPPING

    names = {f"{token}_token_id" for token in ("bos", "eos", "pad", "cls", "sep")}
    if model_type not in CONFIG_MAPPING:  # whose get() knows of nothing that was not imported before
        return set()
    return {name for name in names if hasattr(CONFIG_MAPPING[model_type], name)}


def _from_file(path: Path, vocab_size: int, tokenizer: str | None) -> ModelFromConfig:
    values = read_json(path)
    dropped = ("model_type", "architectures", "vocab_size", "transformers_version", "hf_layerdrop", "dtype")
    fields = {name: value for name, value in values.items() if name not in dropped}
    name = path.parent.name if path.stem == "config" and path.parent.name else path.stem
    return ModelFromConfig(name, values["model_type"], fields, vocab_size, tokenizer)


def _fields(shape: Shape, depths: tuple[int, int], width: int, positions: int, text: str) -> dict[str, Any]:
    if 0 in depths or width < 2 or width % 2:
        raise CheckpointError(f"{text!r} has no layer or an odd width; give whole numbers such as tiny-12x128.")
    if len(shape.depth) == 1 and depths[0] != depths[1]:
        raise CheckpointError(
            f"{text!r} gives two depths, but the family has one stack: give one, such as tiny-12x128."
        )
    heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 2
    return {
        **dict(zip(shape.depth, depths, strict=False)),
        shape.width: width,
        **dict.fromkeys(shape.heads, heads),
        **dict.fromkeys(shape.inner, 4 * width),
        shape.positions: positions + shape.spare_positions,
    }


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
