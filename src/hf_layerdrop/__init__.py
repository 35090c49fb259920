"""Train transformers with LayerDrop, then take out a sub-network of any depth, without finetuning.

For Hugging Face Transformers, after "Reducing Transformer Depth on Demand with Structured Dropout" (Fan, Grave and
Joulin, ICLR 2020).
Names are imported on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # the names below once more, for type checkers and editors; a test compares the two lists
    from .app.page import launch_app as launch_app
    from .checkpoints.recommended import RecommendedSet as RecommendedSet
    from .checkpoints.recommended import RecommendedSets as RecommendedSets
    from .checkpoints.recommended_file import read_recommended as read_recommended
    from .checkpoints.recommended_file import write_recommended as write_recommended
    from .cli.demo_run import demo_checkpoint as demo_checkpoint
    from .distillation.config import DistillationConfig as DistillationConfig
    from .distillation.depths.config import DepthTraining as DepthTraining
    from .distillation.depths.plan import prepare_depths as prepare_depths
    from .distillation.depths.step import backward_depths as backward_depths
    from .distillation.depths.trainer import DepthTrainer as DepthTrainer
    from .distillation.depths.trainer import DepthTrainerMixin as DepthTrainerMixin
    from .distillation.depths.trainer import Seq2SeqDepthTrainer as Seq2SeqDepthTrainer
    from .distillation.model_for_arm import model_for_arm as model_for_arm
    from .distillation.run import distill as distill
    from .distillation.student import student_of as student_of
    from .distillation.trainer import DistillationTrainer as DistillationTrainer
    from .distillation.trainer import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer
    from .errors import CheckpointError as CheckpointError
    from .errors import DistillationError as DistillationError
    from .errors import HealingError as HealingError
    from .errors import HubError as HubError
    from .errors import KeepLayersError as KeepLayersError
    from .errors import LayerDropConfigError as LayerDropConfigError
    from .errors import LayerDropError as LayerDropError
    from .errors import LayerDropStateError as LayerDropStateError
    from .errors import OutputExistsError as OutputExistsError
    from .errors import TaskError as TaskError
    from .errors import TrainingArgumentsError as TrainingArgumentsError
    from .errors import UnsupportedModelError as UnsupportedModelError
    from .evaluation.evaluate import evaluate_depths as evaluate_depths
    from .evaluation.lm_eval_tasks import evaluate_lm_tasks as evaluate_lm_tasks
    from .healing.config import HealingConfig as HealingConfig
    from .healing.linear_map import merge_linear_maps as merge_linear_maps
    from .healing.run import heal as heal
    from .hub.push import push_pruned_to_hub as push_pruned_to_hub
    from .hub.save import save_pruned as save_pruned
    from .hub.serve import pipeline as pipeline
    from .injection.inject import inject_layerdrop as inject_layerdrop
    from .injection.inject import layerdrop_state as layerdrop_state
    from .injection.inject import remove_layerdrop as remove_layerdrop
    from .injection.inject import set_step as set_step
    from .injection.rates import scale_rates as scale_rates
    from .injection.rates import set_rates as set_rates
    from .injection.step_callback import LayerDropStepCallback as LayerDropStepCallback
    from .models.auto import AutoLayerDropModel as AutoLayerDropModel
    from .models.auto import AutoLayerDropModelForCausalLM as AutoLayerDropModelForCausalLM
    from .models.auto import AutoLayerDropModelForMaskedLM as AutoLayerDropModelForMaskedLM
    from .models.auto import AutoLayerDropModelForMultipleChoice as AutoLayerDropModelForMultipleChoice
    from .models.auto import AutoLayerDropModelForQuestionAnswering as AutoLayerDropModelForQuestionAnswering
    from .models.auto import AutoLayerDropModelForSeq2SeqLM as AutoLayerDropModelForSeq2SeqLM
    from .models.auto import AutoLayerDropModelForSequenceClassification as AutoLayerDropModelForSequenceClassification
    from .models.auto import AutoLayerDropModelForTokenClassification as AutoLayerDropModelForTokenClassification
    from .models.auto import load_checkpoint as load_checkpoint
    from .models.auto_heads import AutoLayerDropModelForAudioClassification as AutoLayerDropModelForAudioClassification
    from .models.auto_heads import (
        AutoLayerDropModelForAudioFrameClassification as AutoLayerDropModelForAudioFrameClassification,
    )
    from .models.auto_heads import AutoLayerDropModelForAudioTokenization as AutoLayerDropModelForAudioTokenization
    from .models.auto_heads import AutoLayerDropModelForAudioXVector as AutoLayerDropModelForAudioXVector
    from .models.auto_heads import AutoLayerDropModelForCTC as AutoLayerDropModelForCTC
    from .models.auto_heads import AutoLayerDropModelForDecision as AutoLayerDropModelForDecision
    from .models.auto_heads import AutoLayerDropModelForDepthEstimation as AutoLayerDropModelForDepthEstimation
    from .models.auto_heads import (
        AutoLayerDropModelForDocumentQuestionAnswering as AutoLayerDropModelForDocumentQuestionAnswering,
    )
    from .models.auto_heads import AutoLayerDropModelForImageClassification as AutoLayerDropModelForImageClassification
    from .models.auto_heads import AutoLayerDropModelForImageMatting as AutoLayerDropModelForImageMatting
    from .models.auto_heads import AutoLayerDropModelForImageSegmentation as AutoLayerDropModelForImageSegmentation
    from .models.auto_heads import AutoLayerDropModelForImageTextToText as AutoLayerDropModelForImageTextToText
    from .models.auto_heads import AutoLayerDropModelForImageToImage as AutoLayerDropModelForImageToImage
    from .models.auto_heads import (
        AutoLayerDropModelForInstanceSegmentation as AutoLayerDropModelForInstanceSegmentation,
    )
    from .models.auto_heads import AutoLayerDropModelForKeypointDetection as AutoLayerDropModelForKeypointDetection
    from .models.auto_heads import AutoLayerDropModelForKeypointMatching as AutoLayerDropModelForKeypointMatching
    from .models.auto_heads import AutoLayerDropModelForMaskedImageModeling as AutoLayerDropModelForMaskedImageModeling
    from .models.auto_heads import AutoLayerDropModelForMaskGeneration as AutoLayerDropModelForMaskGeneration
    from .models.auto_heads import AutoLayerDropModelForMultimodalLM as AutoLayerDropModelForMultimodalLM
    from .models.auto_heads import (
        AutoLayerDropModelForNextSentencePrediction as AutoLayerDropModelForNextSentencePrediction,
    )
    from .models.auto_heads import AutoLayerDropModelForNormalEstimation as AutoLayerDropModelForNormalEstimation
    from .models.auto_heads import AutoLayerDropModelForObjectDetection as AutoLayerDropModelForObjectDetection
    from .models.auto_heads import AutoLayerDropModelForPointmapEstimation as AutoLayerDropModelForPointmapEstimation
    from .models.auto_heads import AutoLayerDropModelForPoseEstimation as AutoLayerDropModelForPoseEstimation
    from .models.auto_heads import AutoLayerDropModelForPreTraining as AutoLayerDropModelForPreTraining
    from .models.auto_heads import AutoLayerDropModelForRNNT as AutoLayerDropModelForRNNT
    from .models.auto_heads import (
        AutoLayerDropModelForSemanticSegmentation as AutoLayerDropModelForSemanticSegmentation,
    )
    from .models.auto_heads import AutoLayerDropModelForSpeechSeq2Seq as AutoLayerDropModelForSpeechSeq2Seq
    from .models.auto_heads import (
        AutoLayerDropModelForTableQuestionAnswering as AutoLayerDropModelForTableQuestionAnswering,
    )
    from .models.auto_heads import AutoLayerDropModelForTableRecognition as AutoLayerDropModelForTableRecognition
    from .models.auto_heads import AutoLayerDropModelForTDT as AutoLayerDropModelForTDT
    from .models.auto_heads import AutoLayerDropModelForTextEncoding as AutoLayerDropModelForTextEncoding
    from .models.auto_heads import AutoLayerDropModelForTextRecognition as AutoLayerDropModelForTextRecognition
    from .models.auto_heads import AutoLayerDropModelForTextToSpectrogram as AutoLayerDropModelForTextToSpectrogram
    from .models.auto_heads import AutoLayerDropModelForTextToWaveform as AutoLayerDropModelForTextToWaveform
    from .models.auto_heads import (
        AutoLayerDropModelForTimeSeriesPrediction as AutoLayerDropModelForTimeSeriesPrediction,
    )
    from .models.auto_heads import (
        AutoLayerDropModelForUniversalSegmentation as AutoLayerDropModelForUniversalSegmentation,
    )
    from .models.auto_heads import AutoLayerDropModelForVideoClassification as AutoLayerDropModelForVideoClassification
    from .models.auto_heads import (
        AutoLayerDropModelForVisualQuestionAnswering as AutoLayerDropModelForVisualQuestionAnswering,
    )
    from .models.auto_heads import (
        AutoLayerDropModelForZeroShotImageClassification as AutoLayerDropModelForZeroShotImageClassification,
    )
    from .models.auto_heads import (
        AutoLayerDropModelForZeroShotObjectDetection as AutoLayerDropModelForZeroShotObjectDetection,
    )
    from .models.named import LayerDropBartForCausalLM as LayerDropBartForCausalLM
    from .models.named import LayerDropBartForConditionalGeneration as LayerDropBartForConditionalGeneration
    from .models.named import LayerDropBartForQuestionAnswering as LayerDropBartForQuestionAnswering
    from .models.named import LayerDropBartForSequenceClassification as LayerDropBartForSequenceClassification
    from .models.named import LayerDropBartModel as LayerDropBartModel
    from .models.named import LayerDropBertForMaskedLM as LayerDropBertForMaskedLM
    from .models.named import LayerDropBertForMultipleChoice as LayerDropBertForMultipleChoice
    from .models.named import LayerDropBertForNextSentencePrediction as LayerDropBertForNextSentencePrediction
    from .models.named import LayerDropBertForPreTraining as LayerDropBertForPreTraining
    from .models.named import LayerDropBertForQuestionAnswering as LayerDropBertForQuestionAnswering
    from .models.named import LayerDropBertForSequenceClassification as LayerDropBertForSequenceClassification
    from .models.named import LayerDropBertForTokenClassification as LayerDropBertForTokenClassification
    from .models.named import LayerDropBertLMHeadModel as LayerDropBertLMHeadModel
    from .models.named import LayerDropBertModel as LayerDropBertModel
    from .models.named import LayerDropRobertaForCausalLM as LayerDropRobertaForCausalLM
    from .models.named import LayerDropRobertaForMaskedLM as LayerDropRobertaForMaskedLM
    from .models.named import LayerDropRobertaForMultipleChoice as LayerDropRobertaForMultipleChoice
    from .models.named import LayerDropRobertaForQuestionAnswering as LayerDropRobertaForQuestionAnswering
    from .models.named import LayerDropRobertaForSequenceClassification as LayerDropRobertaForSequenceClassification
    from .models.named import LayerDropRobertaForTokenClassification as LayerDropRobertaForTokenClassification
    from .models.named import LayerDropRobertaModel as LayerDropRobertaModel
    from .pruning.heads import prune_heads as prune_heads
    from .pruning.prune import prune_layers as prune_layers
    from .pruning.prune import sub_network as sub_network
    from .pruning.shared_weights import shared_sub_network as shared_sub_network
    from .pruning.without_structures import structure_sub_network as structure_sub_network
    from .reports.comparison import as_markdown as as_markdown
    from .reports.comparison import comparison_rows as comparison_rows
    from .reports.html import write_report as write_report
    from .reports.series import LayerScores as LayerScores
    from .results.collection import SubNetworkResults as SubNetworkResults
    from .results.plot import draw_depth_plot as draw_depth_plot
    from .results.plot import draw_rates_plot as draw_rates_plot
    from .results.record import SubNetworkResult as SubNetworkResult
    from .results.table import read_results as read_results
    from .results.table import write_results as write_results
    from .samplers.config import LayerDropConfig as LayerDropConfig
    from .samplers.keep_layers import KeepLayers as KeepLayers
    from .samplers.keep_layers import parse_keep_layers as parse_keep_layers
    from .samplers.schedules import make_schedule as make_schedule
    from .search.average_without_layer import average_without_layer as average_without_layer
    from .search.latency import measure_latency as measure_latency
    from .search.learned_rates import learn_rates as learn_rates
    from .search.learned_rates import learned_keep_layers as learned_keep_layers
    from .search.learned_rates import write_learned_selection as write_learned_selection
    from .search.search import search_layers as search_layers
    from .search.selection import Selection as Selection
    from .search.strategies import STRATEGIES as STRATEGIES
    from .tasks.data import load_task_data as load_task_data
    from .tasks.embedded import embedded_sst2 as embedded_sst2
    from .tasks.metrics import compute_metrics_for as compute_metrics_for
    from .tasks.registry import load_task as load_task
    from .training.accumulation import LossScaling as LossScaling
    from .training.callbacks import DepthEvaluationCallback as DepthEvaluationCallback
    from .training.callbacks import LayerDropScheduleCallback as LayerDropScheduleCallback
    from .training.lightning import LightningStepCallback as LightningStepCallback
    from .training.train import last_complete_checkpoint as last_complete_checkpoint
    from .training.train import train as train

# fmt: off
_HOMES = {
    "errors": [
        "CheckpointError", "DistillationError", "HealingError", "HubError", "KeepLayersError", "LayerDropConfigError",
        "LayerDropError", "LayerDropStateError", "OutputExistsError", "TaskError", "TrainingArgumentsError",
        "UnsupportedModelError",
    ],
    "checkpoints.recommended": ["RecommendedSet", "RecommendedSets"],
    "checkpoints.recommended_file": ["read_recommended", "write_recommended"],
    "samplers.config": ["LayerDropConfig"],
    "samplers.keep_layers": ["KeepLayers", "parse_keep_layers"],
    "samplers.schedules": ["make_schedule"],
    "injection.inject": ["inject_layerdrop", "layerdrop_state", "remove_layerdrop", "set_step"],
    "injection.rates": ["scale_rates", "set_rates"],
    "injection.step_callback": ["LayerDropStepCallback"],
    "pruning.heads": ["prune_heads"],
    "pruning.prune": ["prune_layers", "sub_network"],
    "pruning.shared_weights": ["shared_sub_network"],
    "pruning.without_structures": ["structure_sub_network"],
    "models.auto": [
        "AutoLayerDropModel", "AutoLayerDropModelForCausalLM", "AutoLayerDropModelForMaskedLM",
        "AutoLayerDropModelForMultipleChoice", "AutoLayerDropModelForQuestionAnswering",
        "AutoLayerDropModelForSeq2SeqLM", "AutoLayerDropModelForSequenceClassification",
        "AutoLayerDropModelForTokenClassification", "load_checkpoint",
    ],
    "models.auto_heads": [
        "AutoLayerDropModelForAudioClassification", "AutoLayerDropModelForAudioFrameClassification",
        "AutoLayerDropModelForAudioTokenization", "AutoLayerDropModelForAudioXVector", "AutoLayerDropModelForCTC",
        "AutoLayerDropModelForDecision", "AutoLayerDropModelForDepthEstimation",
        "AutoLayerDropModelForDocumentQuestionAnswering", "AutoLayerDropModelForImageClassification",
        "AutoLayerDropModelForImageMatting", "AutoLayerDropModelForImageSegmentation",
        "AutoLayerDropModelForImageTextToText", "AutoLayerDropModelForImageToImage",
        "AutoLayerDropModelForInstanceSegmentation", "AutoLayerDropModelForKeypointDetection",
        "AutoLayerDropModelForKeypointMatching", "AutoLayerDropModelForMaskGeneration",
        "AutoLayerDropModelForMaskedImageModeling", "AutoLayerDropModelForMultimodalLM",
        "AutoLayerDropModelForNextSentencePrediction", "AutoLayerDropModelForNormalEstimation",
        "AutoLayerDropModelForObjectDetection", "AutoLayerDropModelForPointmapEstimation",
        "AutoLayerDropModelForPoseEstimation", "AutoLayerDropModelForPreTraining", "AutoLayerDropModelForRNNT",
        "AutoLayerDropModelForSemanticSegmentation", "AutoLayerDropModelForSpeechSeq2Seq", "AutoLayerDropModelForTDT",
        "AutoLayerDropModelForTableQuestionAnswering", "AutoLayerDropModelForTableRecognition",
        "AutoLayerDropModelForTextEncoding", "AutoLayerDropModelForTextRecognition",
        "AutoLayerDropModelForTextToSpectrogram", "AutoLayerDropModelForTextToWaveform",
        "AutoLayerDropModelForTimeSeriesPrediction", "AutoLayerDropModelForUniversalSegmentation",
        "AutoLayerDropModelForVideoClassification", "AutoLayerDropModelForVisualQuestionAnswering",
        "AutoLayerDropModelForZeroShotImageClassification", "AutoLayerDropModelForZeroShotObjectDetection",
    ],
    "models.named": [
        "LayerDropBartForCausalLM", "LayerDropBartForConditionalGeneration", "LayerDropBartForQuestionAnswering",
        "LayerDropBartForSequenceClassification", "LayerDropBartModel", "LayerDropBertForMaskedLM",
        "LayerDropBertForMultipleChoice", "LayerDropBertForNextSentencePrediction", "LayerDropBertForPreTraining",
        "LayerDropBertForQuestionAnswering", "LayerDropBertForSequenceClassification",
        "LayerDropBertForTokenClassification", "LayerDropBertLMHeadModel", "LayerDropBertModel",
        "LayerDropRobertaForCausalLM", "LayerDropRobertaForMaskedLM", "LayerDropRobertaForMultipleChoice",
        "LayerDropRobertaForQuestionAnswering", "LayerDropRobertaForSequenceClassification",
        "LayerDropRobertaForTokenClassification", "LayerDropRobertaModel",
    ],
    "evaluation.evaluate": ["evaluate_depths"],
    "evaluation.lm_eval_tasks": ["evaluate_lm_tasks"],
    "results.record": ["SubNetworkResult"],
    "results.collection": ["SubNetworkResults"],
    "tasks.data": ["load_task_data"],
    "tasks.embedded": ["embedded_sst2"],
    "tasks.metrics": ["compute_metrics_for"],
    "tasks.registry": ["load_task"],
    "search.average_without_layer": ["average_without_layer"],
    "search.latency": ["measure_latency"],
    "search.learned_rates": ["learn_rates", "learned_keep_layers", "write_learned_selection"],
    "search.selection": ["Selection"],
    "search.search": ["search_layers"],
    "search.strategies": ["STRATEGIES"],
    "reports.comparison": ["as_markdown", "comparison_rows"],
    "reports.html": ["write_report"],
    "results.plot": ["draw_depth_plot", "draw_rates_plot"],
    "reports.series": ["LayerScores"],
    "results.table": ["read_results", "write_results"],
    "training.accumulation": ["LossScaling"],
    "training.callbacks": ["DepthEvaluationCallback", "LayerDropScheduleCallback"],
    "training.lightning": ["LightningStepCallback"],
    "training.train": ["last_complete_checkpoint", "train"],
    "hub.push": ["push_pruned_to_hub"],
    "hub.save": ["save_pruned"],
    "hub.serve": ["pipeline"],
    "distillation.config": ["DistillationConfig"],
    "distillation.depths.config": ["DepthTraining"],
    "distillation.depths.plan": ["prepare_depths"],
    "distillation.depths.step": ["backward_depths"],
    "distillation.depths.trainer": ["DepthTrainer", "DepthTrainerMixin", "Seq2SeqDepthTrainer"],
    "distillation.model_for_arm": ["model_for_arm"],
    "distillation.run": ["distill"],
    "distillation.student": ["student_of"],
    "distillation.trainer": ["DistillationTrainer", "Seq2SeqDistillationTrainer"],
    "healing.config": ["HealingConfig"],
    "healing.linear_map": ["merge_linear_maps"],
    "healing.run": ["heal"],
    "app.page": ["launch_app"],
    "cli.demo_run": ["demo_checkpoint"],
}
# fmt: on
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *(name for name in _HOME_OF if name != "LightningStepCallback")]  # * needs no Lightning


if not TYPE_CHECKING:  # to a type checker, a module that has this function has every name

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
