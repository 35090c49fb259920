"""The model card of a checkpoint, pruned or trained: what was kept, what it scored, how to use it without us."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_layerdrop.checkpoints.companions import SENTENCES
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.reports.card_facts import call_of, labels_of
from hf_layerdrop.results.escaping import code, markdown, plain, quoted
from hf_layerdrop.results.recommended import recommended_markdown
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_kept, format_parameters, measured_rows, render_markdown
from hf_layerdrop.samplers.depth_list import as_depth_list, describe

_TEMPLATE = Path(__file__).with_name("card.jinja")
# The classes of Sentence Transformers, by the Hub's name of what they do.
_OF_SENTENCES = {
    "sentence-similarity": "SentenceTransformer",
    "feature-extraction": "SparseEncoder",
    "text-ranking": "CrossEncoder",
}
_HEALED = {
    "map": "a linear map in place of the removed layers",
    "lora": "LoRA, merged",
    "whole": "a training of all weights",
    "distill": "distillation from the whole model",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class MeasuredOn:
    """The data behind the results, in the words of the Hub's ``model-index``.

    Attributes:
        dataset: Dataset id on the Hub, or any name for local data.
        config: Configuration (subset) of the dataset, e.g. ``sst2``.
        split: Split that was measured.
        more_splits: Further splits, by what is added to the names of their metrics: MNLI's mismatched set by ``_mm``.
    """

    dataset: str = "unspecified"
    config: str | None = None
    split: str | None = None
    more_splits: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> MeasuredOn:
        """Read what training noted in a checkpoint's config."""
        return cls(**{one.name: noted[one.name] for one in fields(cls) if noted.get(one.name) is not None})

    def __str__(self) -> str:
        """Name the data in a sentence."""
        name = " ".join(part for part in (_last_name(self.dataset), self.config, self.split) if part)
        if name == "unspecified":
            return "an evaluation set that its publisher did not name"
        return "".join([name, *(f" and {split} ({suffix})" for suffix, split in self.more_splits.items())])

    def split_of(self, metric: str) -> tuple[str, str | None]:
        """Return the plain name of a metric, and the split that it was measured on."""
        for suffix, split in self.more_splits.items():
            if metric.endswith(suffix):
                return metric.removesuffix(suffix), split
        return metric, self.split


@dataclass(frozen=True)
class CardInfo:
    """What a card says beside the checkpoint's config and the results.

    Attributes:
        name: Name to load the checkpoint by: a Hub id, or its folder's name.
        source: Hub id or folder of the model that was cut; of a folder only the last name is shown.
        revision: Commit or branch of the source.
        pipeline_tag: The Hub's name of the task; decides how the ``model-index`` names it.
        served: Whether plain ``transformers.pipeline`` knows that task.
        inherited: Metadata of the source's own card that goes for its sub-network too: licence, language, data; the
            library and the task of a model that is not for transformers alone.
        measured_on: The data behind the results.
        trained_on: The data and the length of the training, in words, for a card of what was trained.
        machine: What the times were measured on.
        made_with: Versions of what wrote the checkpoint.
    """

    name: str
    source: str | None = None
    revision: str | None = None
    pipeline_tag: str | None = None
    served: bool = False
    inherited: Mapping[str, Any] = field(default_factory=dict)
    measured_on: MeasuredOn = field(default_factory=MeasuredOn)
    trained_on: str | None = None
    machine: str | None = None
    made_with: str | None = None


def render_card(
    config: Mapping[str, Any],
    info: CardInfo,
    *,
    parameters: int,
    results: Sequence[SubNetworkResult] = (),
    plot: str | None = None,
    unplotted: bool = False,
    recommended: RecommendedSets | None = None,
) -> ModelCard:
    """Render the card of a checkpoint: of a sub-network, or, where no layer was taken out, of a whole model.

    Args:
        config: The checkpoint's config as a dict; provenance is read from its ``hf_layerdrop``.
        info: What the config does not say.
        parameters: Number of parameters of the checkpoint.
        results: Records of the depths of the source, this checkpoint's own among them if it was measured; its metrics
            become the ``model-index``.
        plot: File name of the plot beside the card.
        unplotted: Whether there is none because what draws it was not installed.
        recommended: The checkpoint's own recommended sets, in its numbering.
    """
    provenance = saved_provenance(config)
    own = _find_own(results, provenance, parameters)
    base_model = _base_model(info)
    served = info.pipeline_tag if info.served else None
    return ModelCard.from_template(
        _metadata(config, info, base_model, results[own].metrics if own is not None else {}),
        template_path=str(_TEMPLATE),
        title=markdown(info.name.split("/")[-1]),
        name=quoted(info.name),
        pipeline_tag=quoted(served) if served else None,
        call=call_of(served),
        source=_linked(info.source),
        whole=not provenance.get("keep_layers"),
        facts=_facts(config, info, base_model, parameters),
        measured_on=markdown(str(info.measured_on)) + (f" ({rows})" if (rows := measured_rows(results)) else ""),
        machine=_escaped(info.machine),
        model_class=_class_of(config),
        sentences=_OF_SENTENCES[info.inherited["pipeline_tag"]] if _is_of_sentences(info) else None,
        trained_with=describe_training(provenance.get("trained_with")),
        distilled=_describe_distillation(provenance.get("distilled_with")),
        healed=_escaped(", then ".join(_HEALED.get(one, one) for one in provenance.get("healed_with") or ())),
        table=render_markdown(results, marked=own) if results else None,
        plot=quote(plot) if plot else None,
        unplotted=unplotted,
        recommended=recommended_markdown(recommended) if recommended else None,
    )


def _facts(
    config: Mapping[str, Any], info: CardInfo, base_model: str | None, parameters: int
) -> list[tuple[str, str | None]]:
    """Return the table at the top of a card, without what nobody knows."""
    provenance = saved_provenance(config)
    base = None if base_model == info.source else _linked(base_model)
    licence = info.inherited.get("license")
    kept = provenance.get("keep_layers")
    rows = {
        "Kept layers (counted from 0)": format_kept(kept) if kept else None,
        "Same layers in the root checkpoint": _describe_root(provenance),
        "Chosen by": _escaped(_describe_choice(provenance)),
        "Source" if kept else "Trained from": _linked(info.source),
        "Source revision" if kept else "Revision": _linked_revision(base_model, info.revision),
        "Base model": base,
        "Licence": markdown(str(licence)) if licence else "that of the source, whose card was not found to name one",
        "Labels": _escaped(labels_of(config)),
        "Trained on": _escaped(info.trained_on),
        "Distilled with": _escaped(_describe_distillation(provenance.get("distilled_with"))),
        "LayerDrop rate in training": _escaped(describe_training(provenance.get("trained_with"))) or "none recorded",
        "Parameters": format_parameters(parameters),
        "Made with": _escaped(info.made_with),
    }
    return [(name, value) for name, value in rows.items() if value]


def _base_model(info: CardInfo) -> str | None:
    """Return the Hub id of the model that was cut, or of the one that its own card names."""
    named = [info.source, info.inherited.get("base_model")]
    return next((one for one in named if isinstance(one, str) and _is_repo_id(one)), None)


def _linked(source: str | None) -> str | None:
    """Link a Hub id; of a folder show the last name."""
    if source and _is_repo_id(source):
        return f"[{markdown(source)}](https://huggingface.co/{source})"
    return code(_last_name(source)) if source else None


def _linked_revision(base_model: str | None, revision: str | None) -> str | None:
    if revision and base_model and _COMMIT.fullmatch(revision):
        return f"[`{revision[:12]}`](https://huggingface.co/{base_model}/commit/{revision})"
    return code(revision) if revision else None


def _class_of(config: Mapping[str, Any]) -> str:
    """Return the class of the checkpoint, which stands in the card as code: nothing but a name."""
    named = (config.get("architectures") or [""])[0]
    return named if isinstance(named, str) and named.isidentifier() else "AutoModel"


def _is_of_sentences(info: CardInfo) -> bool:
    return info.inherited.get("library_name") == SENTENCES


def _escaped(text: str | None) -> str | None:
    return None if text is None else markdown(text)


def _metadata(
    config: Mapping[str, Any], info: CardInfo, base_model: str | None, metrics: Mapping[str, float]
) -> ModelCardData:
    scores = {name: value for name, value in metrics.items() if math.isfinite(value)}  # YAML on the Hub has no NaN
    known = {"library_name": "transformers", "pipeline_tag": info.pipeline_tag}
    tags = [SENTENCES, info.inherited["pipeline_tag"]] if _is_of_sentences(info) else []
    return ModelCardData(
        **{**known, **{name: _plain(value) for name, value in info.inherited.items() if name != "base_model"}},
        tags=[tag for tag in (*tags, "layerdrop", "pruned", config.get("model_type")) if tag],
        base_model=base_model,
        model_name=plain(info.name.rpartition("/")[2]) if scores else None,
        eval_results=[_eval_result(name, value, info) for name, value in scores.items()] or None,
    )


def _eval_result(metric: str, value: float, info: CardInfo) -> EvalResult:
    task = info.pipeline_tag or "feature-extraction"
    dataset = plain(_last_name(info.measured_on.dataset))
    metric, split = info.measured_on.split_of(metric)
    return EvalResult(
        task_type=task,
        task_name=task.replace("-", " ").capitalize(),
        dataset_type=dataset,
        dataset_name=plain(" ".join(part for part in (dataset, info.measured_on.config) if part)),
        dataset_config=_plain(info.measured_on.config),
        dataset_split=_plain(split),
        metric_type=plain(metric),
        metric_name=plain(metric.replace("_", " ").capitalize()),
        metric_value=round(float(value), 6),
    )


def _plain(value: Any) -> Any:
    """Return metadata of another card without what moves a cursor."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return plain(value) if isinstance(value, str) else value


def _find_own(results: Sequence[SubNetworkResult], provenance: Mapping[str, Any], parameters: int) -> int | None:
    """Find the record of this checkpoint: the one with the layers that were kept, or with all of them."""
    kept = {stack: tuple(indices) for stack, indices in (provenance.get("keep_layers") or {}).items()}
    for number, result in enumerate(results):
        found = {stack: tuple(indices) for stack, indices in result.keep_layers.items()}
        whole = not kept and all(indices == tuple(range(len(indices))) for indices in found.values())
        if found == kept or (whole and result.parameters == parameters):
            return number
    return None


def _describe_root(provenance: Mapping[str, Any]) -> str | None:
    """Name the root checkpoint's layers where they are not the same, because the source had been cut before."""
    root = provenance.get("root_keep_layers")
    return format_kept(root) if root and root != provenance.get("keep_layers") else None


def _describe_choice(provenance: Mapping[str, Any]) -> str | None:
    strategy, score = provenance.get("strategy"), provenance.get("score")
    if not strategy:
        return None
    metric = provenance.get("metric") or "score"
    return f"{strategy} ({metric} {score:.4g})" if isinstance(score, int | float) else str(strategy)


def describe_training(trained_with: Mapping[str, Any] | None) -> str | None:
    """Write the rate the source was trained with, and the settings that are not the usual ones."""
    if not trained_with or "rate" not in trained_with:
        return None
    if (depths := as_depth_list(trained_with.get("depths"))) is not None:
        said, usual = f"depths {describe(depths)}", {"scale": "none", "schedule": None}
    else:
        said = _describe_rate(trained_with["rate"])
        usual = {"shape": "uniform", "sampler": "bernoulli", "structure": "layer", "granularity": "batch"}
        usual |= {"scale": "none", "schedule": None}
    extras = [
        f"{_joined(value)} {name}"
        for name, left_out in usual.items()
        if (value := trained_with.get(name, left_out)) != left_out
    ]
    return ", ".join([said, *(["nested sets"] if trained_with.get("nested") else []), *extras])


def _describe_distillation(settings: Mapping[str, Any] | None) -> str | None:
    """Write what the student learned from, after it was cut."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items()) if settings else None


def _joined(names: Any) -> str:
    return names if isinstance(names, str) else " + ".join(names)


def _describe_rate(rate: Any) -> str:
    if isinstance(rate, Mapping):
        return "; ".join(f"{stack} {_describe_rate(value)}" for stack, value in rate.items())
    if isinstance(rate, Sequence):
        return "one a layer: " + ", ".join(f"{value:g}" for value in rate)
    return f"{rate:g}"


def _is_repo_id(source: str) -> bool:
    """Tell a Hub id from a folder, as transformers does: what exists here is a folder."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return not Path(source).exists()


def _last_name(source: str) -> str:
    """Keep a Hub id; of a path only the last name, since the rest is nobody's business."""
    return source if _is_repo_id(source) else PurePath(source.replace("\\", "/")).name
