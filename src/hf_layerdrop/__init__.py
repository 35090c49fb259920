"""Train transformers with LayerDrop, then take out a sub-network of any depth, without finetuning.

For Hugging Face Transformers, after "Reducing Transformer Depth on Demand with Structured Dropout" (Fan, Grave and
Joulin, ICLR 2020).
Names are imported on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "samplers.config": ["LayerDropConfig"],
    "evaluation.results": ["SubNetworkResult"],
    "injection.inject": ["inject_layerdrop", "layerdrop_state", "remove_layerdrop", "set_rates", "set_step"],
    "pruning.prune": ["prune_layers", "sub_network"],
    "pruning.shared": ["shared_sub_network"],
    "pruning.without_structures": ["structure_sub_network"],
    "pruning.heads": ["prune_heads"],
    "evaluation.evaluate": ["evaluate_depths"],
    "search.learned_rates": ["learn_rates", "learned_keep_layers", "write_learned_selection"],
    "search.record": ["Selection"],
    "search.search": ["search_layers"],
    "search.average_without_layer": ["average_without_layer"],
    "training.callbacks": ["DepthEvaluationCallback", "LayerDropScheduleCallback"],
    "distillation.config": ["DistillationConfig"],
    "distillation.run": ["distill"],
    "distillation.student": ["student_of"],
    "distillation.trainer": ["DistillationTrainer", "Seq2SeqDistillationTrainer"],
    "distillation.model_for_arm": ["model_for_arm"],
    "hub.serve": ["pipeline"],
    "hub.push": ["push_pruned_to_hub"],
    "hub.save": ["save_pruned"],
    "models.auto": [
        "AutoLayerDropModel",
        "AutoLayerDropModelForCausalLM",
        "AutoLayerDropModelForMaskedLM",
        "AutoLayerDropModelForMultipleChoice",
        "AutoLayerDropModelForQuestionAnswering",
        "AutoLayerDropModelForSeq2SeqLM",
        "AutoLayerDropModelForSequenceClassification",
        "AutoLayerDropModelForTokenClassification",
        "load_checkpoint",
    ],
    "models.named": [
        "LayerDropBartForCausalLM",
        "LayerDropBartForConditionalGeneration",
        "LayerDropBartForQuestionAnswering",
        "LayerDropBartForSequenceClassification",
        "LayerDropBartModel",
        "LayerDropBertForMaskedLM",
        "LayerDropBertForMultipleChoice",
        "LayerDropBertForNextSentencePrediction",
        "LayerDropBertForPreTraining",
        "LayerDropBertForQuestionAnswering",
        "LayerDropBertForSequenceClassification",
        "LayerDropBertForTokenClassification",
        "LayerDropBertLMHeadModel",
        "LayerDropBertModel",
        "LayerDropRobertaForCausalLM",
        "LayerDropRobertaForMaskedLM",
        "LayerDropRobertaForMultipleChoice",
        "LayerDropRobertaForQuestionAnswering",
        "LayerDropRobertaForSequenceClassification",
        "LayerDropRobertaForTokenClassification",
        "LayerDropRobertaModel",
    ],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
