"""What the page can show of a model: a row a head, with the texts that it reads and how it answers them.

Transformers' own pipeline answers where there is one; transformers 5 has none for question answering and for
sequence-to-sequence generation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_layerdrop.checkpoints.class_by_weights import auto_classes_of
from hf_layerdrop.errors import TaskError, UnsupportedModelError
from hf_layerdrop.tasks.question_answering import LONGEST

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

GUESSES = 5  # that are shown of a masked word
SPANS = 3  # that are shown of an answer
Texts = tuple[str, str]


@dataclass(frozen=True)
class Tools:
    """A model, and what goes with it.

    Attributes:
        model: The model, which is the sub-network while it answers.
        tokenizer: Its tokenizer.
        pipeline: Transformers' pipeline on this model, if its head has one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pipeline: Pipeline | None

    def encode(self, *texts: str, **settings: Any) -> Any:
        """Return one row of tokens, on the model's device, of one text or a pair."""
        return self.tokenizer(*texts, return_tensors="pt", verbose=False, **settings).to(self.model.device)


@dataclass(frozen=True)
class Found:
    """What a model answers: scored texts, or one text.

    Attributes:
        rows: Texts with their scores, the best first.
        text: What was generated.
        new_tokens: How many tokens that is.
        shares: Whether the scores lie between 0 and 1, so that they can be drawn as bars.
    """

    rows: tuple[tuple[str, float], ...] = ()
    text: str | None = None
    new_tokens: int = 0
    shares: bool = True


@dataclass(frozen=True)
class Head:
    """A kind of model.

    Attributes:
        auto: Transformers' Auto class of it.
        title: What it does, for a reader.
        labels: Of the texts that it reads, one or two.
        example: Of these texts.
        answer: Answers them, with at most so many new tokens.
        pipeline: Transformers' name of its pipeline.
        needs: How many of the texts have to be there.
        generates: Whether it writes new tokens.
    """

    auto: str
    title: str
    labels: tuple[str, ...]
    example: tuple[str, ...]
    answer: Callable[[Tools, Texts, int], Found]
    pipeline: str | None = None
    needs: int = 1
    generates: bool = False


def _classify(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    assert tools.pipeline is not None
    text, pair = texts
    given: Any = {"text": text, "text_pair": pair} if pair.strip() else text
    is_number = tools.model.config.num_labels == 1
    function = {"function_to_apply": "none"} if is_number else {}  # a score of similarity is no share of anything
    found = tools.pipeline(given, top_k=None, **function)
    return Found(tuple((str(one["label"]), float(one["score"])) for one in found), shares=not is_number)


def _fill_masks(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    assert tools.pipeline is not None
    mask = tools.tokenizer.mask_token
    places = texts[0].count(str(mask))
    if not places:
        raise TaskError(f"The text has no {mask}: write it in the place of the word that is to be guessed.")
    found = tools.pipeline(texts[0], top_k=GUESSES)
    by_mask = [found] if places == 1 else found
    return Found(
        tuple(
            (f"{number}: {one['token_str']}" if places > 1 else one["token_str"], float(one["score"]))
            for number, guesses in enumerate(by_mask, 1)
            for one in guesses
        )
    )


def _find_spans(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    """Return the spans of the paragraph with the largest product of the chances to begin and to end there."""
    question, paragraph = texts
    encoded = tools.encode(question, paragraph, return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    outside = torch.tensor([part != 1 for part in encoded.sequence_ids(0)], device=tools.model.device)
    output = tools.model(**_accepted(tools.model, encoded))
    begins, ends = (
        logits[0].float().masked_fill(outside, -math.inf).softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    spans = (begins[:, None] * ends[None]).triu().tril(LONGEST - 1)
    scores, places = spans.flatten().topk(min(SPANS, spans.numel()))
    found = [divmod(place, len(ends)) for place in places.tolist()]
    words = [paragraph[offsets[begin][0] : offsets[end][1]] for begin, end in found]
    return Found(tuple(zip(words, scores.tolist(), strict=True)))


def _continue(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    assert tools.pipeline is not None
    prompt = tools.encode(texts[0])["input_ids"].shape[1]
    (found,) = tools.pipeline(texts[0], return_tensors=True, max_new_tokens=new_tokens, do_sample=False)
    tokens = found["generated_token_ids"][prompt:]
    return Found(text=tools.tokenizer.decode(tokens, skip_special_tokens=True), new_tokens=len(tokens))


def _transform(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    inputs = _accepted(tools.model, tools.encode(texts[0]))
    generated: Any = tools.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    text = tools.tokenizer.decode(generated[0], skip_special_tokens=True)
    return Found(text=text, new_tokens=len(generated[0]) - 1)  # the first one starts the decoder


def _compare(tools: Tools, texts: Texts, new_tokens: int) -> Found:
    """Compare sentences by the cosine of their mean hidden states, as Sentence Transformers does."""
    assert tools.pipeline is not None
    first, *others = (
        torch.as_tensor(tools.pipeline(line, return_tensors=True))[0].float().mean(0)
        for line in (texts[0], *lines_of(texts[1]))
    )
    scores = [torch.cosine_similarity(first, other, dim=0).item() for other in others]
    found = zip(lines_of(texts[1]), scores, strict=True)
    return Found(tuple(sorted(found, key=lambda row: -row[1])))


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _accepted(model: PreTrainedModel, encoded: Any) -> dict[str, Any]:
    """Leave out what a tokenizer says and a model does not ask for."""
    import inspect

    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in encoded.items() if name in known}


# A model of several of these heads is shown as the first: BART fills masks too.
HEADS = (
    Head(
        "AutoModelForSequenceClassification",
        "Text classification",
        ("Text", "Second text, for a model of pairs"),
        ("A warm, funny film that I would gladly see again.", ""),
        _classify,
        pipeline="text-classification",
    ),
    Head(
        "AutoModelForQuestionAnswering",
        "Question answering",
        ("Question", "Paragraph"),
        (
            "When was the bridge opened?",
            "The old bridge was built of stone. It was opened in 1894, and a second one of steel followed in 1931.",
        ),
        _find_spans,
        needs=2,
    ),
    Head(
        "AutoModelForSeq2SeqLM",
        "Text to text",
        ("Text",),
        ("The old bridge was built of stone, and a second one of steel followed in 1931.",),
        _transform,
        generates=True,
    ),
    Head(
        "AutoModelForMaskedLM",
        "Masked words",
        ("Text with {mask}",),
        ("The old bridge was built of {mask}.",),
        _fill_masks,
        pipeline="fill-mask",
    ),
    Head(
        "AutoModelForCausalLM",
        "Text generation",
        ("Text to continue",),
        ("The old bridge was built of stone, and",),
        _continue,
        pipeline="text-generation",
        generates=True,
    ),
    Head(
        "AutoModel",
        "Similar sentences",
        ("Sentence", "Sentences to compare it with, one a line"),
        (
            "A warm, funny film.",
            "I laughed a lot in the cinema.\nTwo hours of noise.\nThe bridge was opened in 1894.",
        ),
        _compare,
        pipeline="feature-extraction",
        needs=2,
    ),
)


def find_head(cls: type[PreTrainedModel]) -> Head:
    """Return what the page shows of a model class.

    Raises:
        UnsupportedModelError: If that is nothing.
    """
    autos: Sequence[str] = auto_classes_of(cls)
    found = next((head for head in HEADS if head.auto in autos), None)
    is_plain = found is HEADS[-1] and cls.main_input_name != "input_ids"  # a model of images or speech without a head
    if found is None or is_plain:
        known = ", ".join(head.title.lower() for head in HEADS)
        raise UnsupportedModelError(
            f"The app has nothing to show of {cls.__name__}: it is for models of {known}; measure others with "
            "hf-layerdrop sweep."
        )
    return found
