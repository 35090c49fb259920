"""A study: one task with its arms, at two sizes. Tables and figures are views of studies, and share their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

SIZES = MINI, PAPER = "mini", "paper"
WHOLE = "full"  # the cut that cuts nothing
BUDGETS = STEPS, LAYERS = "steps", "layers"
# Fields that journals do not have from before they came.
_LATER = {
    *("structure", "train_tokens", "pretrained", "freeze_embeddings", "layers", "depths", "dropout_of"),
    *("keep_models", "budget", "drop", "together", "dropout", "learning_rate"),
}
DEEP, SHALLOWER = "standard", ("scratch-half", "scratch-quarter")  # depth pays where the first beats the others


@dataclass(frozen=True)
class Data:
    """Where the rows are.

    Attributes:
        folder: Name of the data set's folder in ``--data-dir``, with a file for each split.
        train: Name of the training file, without its ending.
        validation: The same of the file that is measured on.
        hub: A data set on the Hub instead; None where the task knows one, or there is none.
        hub_config: Its configuration.
        text_columns: Columns, where they are not the task's.
        train_rows: Only so many of the training rows; 0 for all.
        validation_rows: Only so many of the measured rows; 0 for all.
        train_tokens: Of language modelling only the first so many tokens, in whole inputs; 0 for all.
    """

    folder: str
    train: str = "train"
    validation: str = "validation"
    hub: str | None = None
    hub_config: str | None = None
    text_columns: tuple[str, ...] = ()
    train_rows: int = 0
    validation_rows: int = 0
    train_tokens: int = 0


@dataclass(frozen=True)
class Size:
    """What a study trains at one size.

    Attributes:
        model: Family, depth and width, as ``hf-layerdrop train --config`` takes them.
        data: The rows.
        cuts: The sub-networks that are measured, by name; ``full`` is the whole model.
        training: Settings of TrainingArguments.
        fields: Fields of the model's config.
        vocab_size: Most tokens of the tokenizer that is trained on the data.
        tokenizer_of: The study whose tokenizer is taken instead.
        max_length: Most tokens of an input.
        max_target_length: Most tokens of a generated text.
        num_beams: Beam width.
        importance: Random sets that are scored for the importance of layers (Figure 5), at the depth of cut ``half``.
        seeds: The seeds that are run if none are asked for.
        differs: What is not as in the paper, and why.
        pretrained: The checkpoint that arms begin with in place of random weights, one of `pretrained.CHECKPOINTS`.
            ``model`` is then its shape, for estimates.
        freeze_embeddings: Whether the token embeddings stay as they are.
        layers: How many layers the whole model has, by stack; needed where an arm gets its budget in layer forwards.
        depths: What the arms ``depths`` and ``together`` train, as `LayerDropConfig.for_depths` takes it.
        dropout_of: Names of the modules that end a residual branch, on whose outputs an arm's dropout falls.
        keep_models: Whether the trained models are kept; else only those that another arm begins with.
    """

    model: str
    data: Data
    cuts: Mapping[str, Any]
    training: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    vocab_size: int = 8000
    tokenizer_of: str | None = None
    max_length: int | None = None
    max_target_length: int | None = None
    num_beams: int | None = None
    importance: int = 0
    seeds: tuple[int, ...] = (0,)
    differs: tuple[str, ...] = ()
    pretrained: str | None = None
    freeze_embeddings: bool = False
    layers: Mapping[str, int] = field(default_factory=dict)
    depths: Any = ()
    dropout_of: tuple[str, ...] = ()
    keep_models: bool = True


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        name: What tables and claims call it.
        start: What it begins with: one of `model_for_arm.ARMS`, or ``depths`` (one of the size's depths a step) or
            ``together`` (several of them a step, distilled).
        rate: Its drop rate, where it drops.
        structure: What it drops, as `LayerDropConfig` takes it.
        cut: The cut that is trained: of random weights, of the teacher, or of the model that ``source`` left.
        source: The arm, or ``study/arm``, whose trained model it begins with or learns from.
        steps: Its share of the steps of the size.
        importance: Whether the importance of its layers is measured.
        budget: ``steps``: as many steps as the size says, or ``layers``: as many as give the layer forwards of these
            steps of the whole model.
        drop: Other settings of `LayerDropConfig`, in place of rate and structure.
        together: Settings of `DepthTraining`.
        dropout: Ordinary dropout on the residual branches.
        learning_rate: Another one than the size's.
    """

    name: str
    start: str = "standard"
    rate: float = 0.0
    structure: str | tuple[str, ...] = "layer"
    cut: str = WHOLE
    source: str | None = None
    steps: float = 1.0
    importance: bool = False
    budget: str = STEPS
    drop: Mapping[str, Any] = field(default_factory=dict)
    together: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    learning_rate: float | None = None


@dataclass(frozen=True)
class Study:
    """A task, its arms, and its two sizes.

    Attributes:
        name: Its name.
        title: The same for readers.
        task: The task, as `load_task` knows it.
        metric: What is compared.
        lower_is_better: Whether less of it is better.
        arms: The arms by name.
        sizes: The sizes by name.
        variants: Names of the arms that differ in a setting alone, by that of the arm that they are variants of.
    """

    name: str
    title: str
    task: str
    metric: str
    lower_is_better: bool
    arms: Mapping[str, Arm]
    sizes: Mapping[str, Size]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def variants_of(self, arm: str) -> tuple[str, ...]:
        """Return the arms that are variants of one; itself, if it has none."""
        return self.variants.get(arm, (arm,))


def settings_of(value: Any) -> dict[str, Any]:
    """Return plain JSON values of a record above; what came later and says nothing is left out."""
    found = {}
    for one in fields(value):
        own = getattr(value, one.name)
        if one.name not in _LATER or own != _default(one):
            found[one.name] = settings_of(own) if is_dataclass(own) else own
    return found


def _default(one: Any) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()
