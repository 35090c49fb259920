"""A LayerDrop subclass of every model class that transformers has for BERT, RoBERTa and BART."""

from __future__ import annotations

from transformers import (
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    PreTrainedModel,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from hf_layerdrop.models.mixin import LayerDropMixin, plain_class


class LayerDropBertModel(LayerDropMixin, BertModel):
    """`BertModel` with LayerDrop."""


class LayerDropBertForPreTraining(LayerDropMixin, BertForPreTraining):
    """`BertForPreTraining` with LayerDrop."""


class LayerDropBertLMHeadModel(LayerDropMixin, BertLMHeadModel):
    """`BertLMHeadModel` with LayerDrop."""


class LayerDropBertForMaskedLM(LayerDropMixin, BertForMaskedLM):
    """`BertForMaskedLM` with LayerDrop."""


class LayerDropBertForNextSentencePrediction(LayerDropMixin, BertForNextSentencePrediction):
    """`BertForNextSentencePrediction` with LayerDrop."""


class LayerDropBertForSequenceClassification(LayerDropMixin, BertForSequenceClassification):
    """`BertForSequenceClassification` with LayerDrop."""


class LayerDropBertForMultipleChoice(LayerDropMixin, BertForMultipleChoice):
    """`BertForMultipleChoice` with LayerDrop."""


class LayerDropBertForTokenClassification(LayerDropMixin, BertForTokenClassification):
    """`BertForTokenClassification` with LayerDrop."""


class LayerDropBertForQuestionAnswering(LayerDropMixin, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with LayerDrop."""


class LayerDropRobertaModel(LayerDropMixin, RobertaModel):
    """`RobertaModel` with LayerDrop."""


class LayerDropRobertaForCausalLM(LayerDropMixin, RobertaForCausalLM):
    """`RobertaForCausalLM` with LayerDrop."""


class LayerDropRobertaForMaskedLM(LayerDropMixin, RobertaForMaskedLM):
    """`RobertaForMaskedLM` with LayerDrop."""


class LayerDropRobertaForSequenceClassification(LayerDropMixin, RobertaForSequenceClassification):
    """`RobertaForSequenceClassification` with LayerDrop."""


class LayerDropRobertaForMultipleChoice(LayerDropMixin, RobertaForMultipleChoice):
    """`RobertaForMultipleChoice` with LayerDrop."""


class LayerDropRobertaForTokenClassification(LayerDropMixin, RobertaForTokenClassification):
    """`RobertaForTokenClassification` with LayerDrop."""


class LayerDropRobertaForQuestionAnswering(LayerDropMixin, RobertaForQuestionAnswering):
    """`RobertaForQuestionAnswering` with LayerDrop."""


class LayerDropBartModel(LayerDropMixin, BartModel):
    """`BartModel` with LayerDrop."""


class LayerDropBartForConditionalGeneration(LayerDropMixin, BartForConditionalGeneration):
    """`BartForConditionalGeneration` with LayerDrop."""


class LayerDropBartForSequenceClassification(LayerDropMixin, BartForSequenceClassification):
    """`BartForSequenceClassification` with LayerDrop."""


class LayerDropBartForQuestionAnswering(LayerDropMixin, BartForQuestionAnswering):
    """`BartForQuestionAnswering` with LayerDrop."""


class LayerDropBartForCausalLM(LayerDropMixin, BartForCausalLM):
    """`BartForCausalLM` with LayerDrop."""


NAMED: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    plain_class(cls): cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, LayerDropMixin) and cls is not LayerDropMixin
}
"""The LayerDrop subclass of each transformers class that has one."""
