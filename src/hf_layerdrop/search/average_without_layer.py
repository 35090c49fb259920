"""The paper's Figure 5: which layers matter, by the average score of random sets that lack each of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from transformers import PreTrainedModel, Trainer

from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.evaluation.model_or_trainer import AnyMetric, Collator, Data
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.search.objective import find_objective
from hf_layerdrop.search.score_source import Setting, score_by_data
from hf_layerdrop.search.scoring import Scorer
from hf_layerdrop.search.space import Depth, Space, no_set_of, parse_depth


@dataclass(frozen=True)
class AverageWithout:
    """The average score of random sub-networks of one depth that lack a layer.

    Attributes:
        metric: Name of the score.
        greater_is_better: Whether a higher score is better; then a layer matters that has a low average.
        scores: Average by stack and layer; None for a layer that every set kept.
        sets: How many of the sets lacked the layer, by stack and layer.
    """

    metric: str
    greater_is_better: bool
    scores: dict[str, tuple[float | None, ...]]
    sets: dict[str, tuple[int, ...]]


def average_without_layer(
    model: PreTrainedModel | Trainer,
    dataset: Data | None = None,
    *,
    depth: Depth,
    metric: AnyMetric | None = None,
    samples: int = 100,
    greater_is_better: bool | None = None,
    seed: int = 0,
    batch_size: int = 32,
    collator: Collator | None = None,
    memory_limit_mb: float = 1024,
    progress: bool = True,
) -> AverageWithout:
    """Score random sub-networks of a depth, and average those that lack each layer (paper, Figure 5).

    The paper takes sets of 8 of 16 layers, and finds that the first and last layers matter most. All of the data is
    used, since nothing is chosen by it; the arguments are those of `search_layers`.

    Raises:
        UnsupportedModelError: If no set of this depth can be cut; nothing was scored then.
    """
    plain = model.accelerator.unwrap_model(model.model) if isinstance(model, Trainer) else model
    cutter = Cutter(plain)
    depths = cutter.depths
    space = Space(depths, parse_depth(depth, depths), cutter.can_cut)
    sets = space.random_sets(samples, Random(seed))
    if not sets:
        raise UnsupportedModelError(no_set_of(plain, cutter.last_refusal))
    setting = Setting(batch_size, collator, int(memory_limit_mb * 1e6), seed)
    scores = score_by_data(model, dataset, None, metric, setting, hold_out=False)
    results = Scorer(scores.measure, progress=progress).results(sets)
    objective = find_objective(scores.metric_name, results[0].metrics, greater_is_better)
    lacking = {
        stack: [
            [objective.score(result) for result in results if layer not in result.keep_layers[stack]]
            for layer in range(count)
        ]
        for stack, count in depths.items()
    }
    return AverageWithout(
        objective.name,
        objective.greater_is_better,
        {stack: tuple(sum(s) / len(s) if s else None for s in layers) for stack, layers in lacking.items()},
        {stack: tuple(len(s) for s in layers) for stack, layers in lacking.items()},
    )
