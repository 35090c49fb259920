"""The Auto classes of all other tasks that transformers has one for: images, speech, documents, series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from hf_layerdrop.models.auto import AutoLayerDrop

if TYPE_CHECKING:
    from hf_layerdrop.models.auto import GeneratingModel  # noqa: F401  # in the quotes below


class AutoLayerDropModelForAudioClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForAudioClassification` with LayerDrop."""


class AutoLayerDropModelForAudioFrameClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForAudioFrameClassification` with LayerDrop."""


class AutoLayerDropModelForAudioTokenization(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForAudioTokenization` with LayerDrop."""


class AutoLayerDropModelForAudioXVector(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForAudioXVector` with LayerDrop."""


class AutoLayerDropModelForCTC(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForCTC` with LayerDrop."""


class AutoLayerDropModelForDecision(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForDecision` with LayerDrop."""


class AutoLayerDropModelForDepthEstimation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForDepthEstimation` with LayerDrop."""


class AutoLayerDropModelForDocumentQuestionAnswering(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForDocumentQuestionAnswering` with LayerDrop."""


class AutoLayerDropModelForImageClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForImageClassification` with LayerDrop."""


class AutoLayerDropModelForImageMatting(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForImageMatting` with LayerDrop."""


class AutoLayerDropModelForImageSegmentation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForImageSegmentation` with LayerDrop."""


class AutoLayerDropModelForImageTextToText(AutoLayerDrop["GeneratingModel"]):
    """`AutoModelForImageTextToText` with LayerDrop."""


class AutoLayerDropModelForImageToImage(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForImageToImage` with LayerDrop."""


class AutoLayerDropModelForInstanceSegmentation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForInstanceSegmentation` with LayerDrop."""


class AutoLayerDropModelForKeypointDetection(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForKeypointDetection` with LayerDrop."""


class AutoLayerDropModelForKeypointMatching(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForKeypointMatching` with LayerDrop."""


class AutoLayerDropModelForMaskGeneration(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForMaskGeneration` with LayerDrop."""


class AutoLayerDropModelForMaskedImageModeling(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForMaskedImageModeling` with LayerDrop."""


class AutoLayerDropModelForMultimodalLM(AutoLayerDrop["GeneratingModel"]):
    """`AutoModelForMultimodalLM` with LayerDrop."""


class AutoLayerDropModelForNextSentencePrediction(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForNextSentencePrediction` with LayerDrop."""


class AutoLayerDropModelForNormalEstimation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForNormalEstimation` with LayerDrop."""


class AutoLayerDropModelForObjectDetection(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForObjectDetection` with LayerDrop."""


class AutoLayerDropModelForPointmapEstimation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForPointmapEstimation` with LayerDrop."""


class AutoLayerDropModelForPoseEstimation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForPoseEstimation` with LayerDrop."""


class AutoLayerDropModelForPreTraining(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForPreTraining` with LayerDrop."""


class AutoLayerDropModelForRNNT(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForRNNT` with LayerDrop."""


class AutoLayerDropModelForSemanticSegmentation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForSemanticSegmentation` with LayerDrop."""


class AutoLayerDropModelForSpeechSeq2Seq(AutoLayerDrop["GeneratingModel"]):
    """`AutoModelForSpeechSeq2Seq` with LayerDrop."""


class AutoLayerDropModelForTDT(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTDT` with LayerDrop."""


class AutoLayerDropModelForTableQuestionAnswering(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTableQuestionAnswering` with LayerDrop."""


class AutoLayerDropModelForTableRecognition(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTableRecognition` with LayerDrop."""


class AutoLayerDropModelForTextEncoding(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTextEncoding` with LayerDrop."""


class AutoLayerDropModelForTextRecognition(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTextRecognition` with LayerDrop."""


class AutoLayerDropModelForTextToSpectrogram(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTextToSpectrogram` with LayerDrop."""


class AutoLayerDropModelForTextToWaveform(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTextToWaveform` with LayerDrop."""


class AutoLayerDropModelForTimeSeriesPrediction(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForTimeSeriesPrediction` with LayerDrop."""


class AutoLayerDropModelForUniversalSegmentation(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForUniversalSegmentation` with LayerDrop."""


class AutoLayerDropModelForVideoClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForVideoClassification` with LayerDrop."""


class AutoLayerDropModelForVisualQuestionAnswering(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForVisualQuestionAnswering` with LayerDrop."""


class AutoLayerDropModelForZeroShotImageClassification(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForZeroShotImageClassification` with LayerDrop."""


class AutoLayerDropModelForZeroShotObjectDetection(AutoLayerDrop[PreTrainedModel]):
    """`AutoModelForZeroShotObjectDetection` with LayerDrop."""
