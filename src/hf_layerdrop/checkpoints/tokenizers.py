"""The tokenizer of a checkpoint; or a new one, byte-level BPE or WordPiece, of the texts that a model is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.checkpoints.companions import parted, read_beside
from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.strangers import reason_of
from hf_layerdrop.checkpoints.unreadable import is_there
from hf_layerdrop.errors import CheckpointError, LayerDropError, TaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Copied byte for byte rather than loaded and saved: AutoTokenizer makes an empty tokenizer where there are no files.
PROCESSOR_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*.json",
    "*vocab*.txt",
    "merges.txt",
    "normalizer.json",
    "bpe.codes",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*processor_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)

DEFAULT_SIZE = 8000
SMALLEST_SIZE = 300  # room for the bytes and special tokens


def load_tokenizer(model: str, **where: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; ``where`` is passed to ``from_pretrained``.

    Raises:
        CheckpointError: If the checkpoint has none.
    """
    from transformers import AutoTokenizer

    try:
        trusted = bool(where.get("trust_remote_code"))  # for None, transformers asks at the terminal
        with bounded_waits():
            tokenizer = AutoTokenizer.from_pretrained(model, **{**where, "trust_remote_code": trusted})
    except LayerDropError:
        raise
    except Exception as error:  # of a library for each kind, and with no common base
        missing = isinstance(error, OSError | ValueError) and not (is_there(model) and processor_files(Path(model)))
        said = f"The tokenizer of {model!r} cannot be read ({reason_of(error)}): correct it, or download it again."
        raise CheckpointError(no_tokenizer(model) if missing else said) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise CheckpointError(no_tokenizer(model))
    return tokenizer


def processor_files(folder: Path) -> list[Path]:
    """List the files of tokenizer and processors in a folder, also those that only its own kind of tokenizer has."""
    return [path for part in _processor_files(folder) for path in part]


def copied_processor_files(folder: Path) -> list[Path]:
    """List the files of tokenizer and processors that are copied: all, since without its vocabulary one says nothing.

    Raises:
        CheckpointError: If one is a link that leads out of the checkpoint, or nowhere.
    """
    files, left_out = _processor_files(folder)
    for link in left_out:
        raise CheckpointError(
            f"{str(link)!r} is a link that leads out of the checkpoint, and is not followed to a file that may be "
            "published: copy the file in its place, give a tokenizer (tokenizer=...), or go on without "
            "(tokenizer=False, --no-tokenizer)."
        )
    return files


def _processor_files(folder: Path) -> tuple[list[Path], list[Path]]:
    return parted(folder, [*PROCESSOR_FILES, *map(escape, vocabulary_files(folder))])


def vocabulary_files(folder: Path) -> list[str]:
    """Return the names of the files that the tokenizer class of a checkpoint reads, as transformers declares them."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    said = [read_beside(folder / name) for name in ("tokenizer_config.json", "config.json")]
    said = [content for content in said if isinstance(content, dict)]
    names = [content.get("tokenizer_class") for content in said]
    for content in said:
        known = TOKENIZER_MAPPING_NAMES.get(str(content.get("model_type")))
        names += known if isinstance(known, tuple) else [known]
    names = [name for name in names if isinstance(name, str)]
    declared: set[str] = set()
    for name in {*names, *(name.removesuffix("Fast") for name in names)}:
        with suppress(AttributeError, ImportError, RuntimeError):  # no tokenizer, or one whose library is missing
            declared |= set(getattr(transformers, name).vocab_files_names.values())
    return sorted(declared)


def none_beside(model: str) -> str:
    """Say that there is no tokenizer to save along with a checkpoint."""
    return (
        f"No tokenizer was found beside the weights of {model!r}: give one (tokenizer=...), or go on without "
        "(tokenizer=False, --no-tokenizer)."
    )


def no_tokenizer(model: str) -> str:
    """Say that a checkpoint has no tokenizer."""
    return f"{model!r} has no tokenizer: copy the tokenizer's files into the folder, or give a Hub id."


@dataclass(frozen=True)
class TokenizerKind:
    """A kind of tokenizer: its special tokens by role, in the order of their numbers, and what trains it."""

    special: dict[str, str]
    train: Callable[[Iterable[str], int, list[str]], Tokenizer]
    template: tuple[str, str] | None  # of one text and of a pair
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")


def train_tokenizer(
    texts: Iterable[str], kind: str, *, vocab_size: int = DEFAULT_SIZE, max_length: int | None = None
) -> PreTrainedTokenizerBase:
    """Train a tokenizer and return it in the form that transformers saves and loads.

    Args:
        texts: What it is trained on.
        kind: One of `TOKENIZERS`.
        vocab_size: Most tokens; a small text gives fewer.
        max_length: Most tokens that the model has positions for.

    Raises:
        TaskError: If the size leaves no room.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_SIZE:
        raise TaskError(f"--vocab-size is {vocab_size}; give {SMALLEST_SIZE} or more, such as {DEFAULT_SIZE}.")
    chosen = TOKENIZERS[kind]
    tokens = list(dict.fromkeys(chosen.special.values()))
    tokenizer = chosen.train(texts, vocab_size, tokens)
    if chosen.template is not None:
        single, pair = chosen.template
        numbers = [(token, tokenizer.token_to_id(token)) for token in tokens]
        tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=numbers)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=list(chosen.inputs),
        clean_up_tokenization_spaces=False,
        **chosen.special,
    )


def _train_bpe(texts: Iterable[str], size: int, special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], size: int, special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TOKENIZERS: dict[str, TokenizerKind] = {
    "bpe": TokenizerKind(
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}, _train_bpe, None
    ),
    # With marks around each text, numbered as RoBERTa and BART do.
    "bpe-marked": TokenizerKind(
        {
            "bos_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "mask_token": "<mask>",
        },
        _train_bpe,
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    ),
    "wordpiece": TokenizerKind(
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        _train_wordpiece,
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        ("input_ids", "token_type_ids", "attention_mask"),
    ),
}
