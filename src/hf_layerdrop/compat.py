"""Private names of other libraries, all that the package uses: where each is, what it is for, and how it has to look.

A minor version may change any of them without a word, and what is built on them would then be wrong without a word:
layers missing in the hidden states, layers dropped while text is generated. So each is looked up here when it is first
used, and compared with what it was; a change is told in one sentence. No library is imported before that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from types import CodeType
from typing import Any

from hf_layerdrop.errors import IncompatibleVersionError

# The versions that all tests have run with.
TESTED = {
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "typer": "0.29.2",
}


@dataclass(frozen=True)
class Private:
    """A private name, or a public one of which more is used than its documentation promises.

    Attributes:
        path: Where it is, ``module:name``.
        purpose: What the package needs it for.
        parameters: Those that it has to take.
        inside: What its code has to name: variables, attributes and functions; of a function in it, ``inner.variable``.
    """

    path: str
    purpose: str
    parameters: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    @cached_property
    def value(self) -> Any:
        """What the name stands for.

        Raises:
            IncompatibleVersionError: If it is gone, or not what it was.
        """
        try:
            found = resolve_name(self.path)
        except (ImportError, AttributeError) as error:
            raise self.changed(f"{self._shown} is gone") from error
        if self.parameters:
            taken = inspect.signature(found).parameters
            self._demand(self.parameters, taken, "does not take")
        if self.inside:
            self._demand(self.inside, {name for code in _codes(found) for name in _names(code)}, "does not use")
        return found

    @cached_property
    def code(self) -> CodeType:
        """The code of a function, by which its frames are known: of the one that is under decorators."""
        return next(_codes(self.value))

    def changed(self, what: str) -> IncompatibleVersionError:
        """Return the error that says what has changed, and what to do about it."""
        library = self.path.partition(":")[0].partition(".")[0]
        try:
            installed = version(library)
        except PackageNotFoundError:
            installed = "(of an unknown version)"
        tested = f"{library}=={TESTED[library]}"
        return IncompatibleVersionError(
            f"{library} {installed} differs from the versions that hf-layerdrop is tested with: {what}, which it needs "
            f"for {self.purpose}; pip install {tested!r}, or a newer hf-layerdrop, and report it if there is none."
        )

    @property
    def _shown(self) -> str:
        return self.path.replace(":", ".")

    def _demand(self, wanted: tuple[str, ...], there: Any, lacks: str) -> None:
        if missing := [name for name in wanted if name not in there]:
            raise self.changed(f"{self._shown} {lacks} {missing[0]!r} any more")


class PrivateMethod(Private):
    """A private method of a class, which objects are asked for, or which a class of ours has in place of it."""

    @cached_property
    def name(self) -> str:
        """The name of the method, for getattr and setattr."""
        name: str = self.value.__name__
        return name

    def replace(self, cls: type, method: Any) -> None:
        """Give a class of ours another method of this name."""
        setattr(cls, self.name, method)


@dataclass(frozen=True)
class PrivateAttribute(Private):
    """A private attribute of objects: ``path`` is the class that has it, or whose code or function sets it."""

    attribute: str = ""

    @cached_property
    def name(self) -> str:
        """The name of the attribute, for getattr.

        Raises:
            IncompatibleVersionError: If the class neither has nor sets it.
        """
        home = self.value
        if not (hasattr(home, self.attribute) or any(self.attribute in _names(code) for code in _codes(home))):
            raise self.changed(f"{self._shown} has no {self.attribute!r} any more")
        return self.attribute


@dataclass(frozen=True)
class PrivateVariable(Private):
    """A variable of a function, read from its frames or, of a function inside it, from its closure."""

    variable: str = ""
    inner: str = ""

    @cached_property
    def code(self) -> CodeType:
        """The code of the function.

        Raises:
            IncompatibleVersionError: If the function is gone, or has no such variable.
        """
        for code in _codes(self.value):
            inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            for found in inner if self.inner else [code]:
                if found.co_name == (self.inner or found.co_name) and self.variable in _variables(found):
                    return found
        where = f"{self._shown}.{self.inner}".rstrip(".")
        raise self.changed(f"{where} has no variable {self.variable!r} any more")

    def of_closure(self, function: Any) -> Any:
        """Return the variable that an inner function closes over."""
        return function.__closure__[self.code.co_freevars.index(self.variable)].cell_contents


def _codes(found: Any) -> Iterator[CodeType]:
    """Yield the code of a function, or of all functions of a class and of those that it inherits."""
    if inspect.isclass(found):
        for cls in found.__mro__:
            for member in vars(cls).values():
                if not inspect.isclass(member):
                    yield from _codes(member.fget if isinstance(member, property) else member)
    else:
        code = getattr(inspect.unwrap(getattr(found, "__func__", found)), "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _variables(code: CodeType) -> tuple[str, ...]:
    return (*code.co_varnames, *code.co_freevars, *code.co_cellvars)


def _names(code: CodeType) -> Iterator[str]:
    """Yield what a code names, and what functions inside it name, after their own names."""
    yield from (*_variables(code), *code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield constant.co_name
            yield from (f"{constant.co_name}.{name}" for name in _names(constant))


# torch: compiled regions and modules.
OPTIMIZED_MODULE = Private("torch._dynamo:OptimizedModule", "refusing models that torch.compile has wrapped already")
COMPILED_REGION = Private(
    "torch._C:_dynamo.eval_frame.get_eval_frame_callback", "keeping the draws of layers out of compiled graphs"
)
COMPILED_CALL = PrivateAttribute(
    "torch.nn:Module", "warning of whole models that are compiled", attribute="_compiled_call_impl"
)

# torch: which forward is running, and which checkpoint repeats it.
GRAPH_TASK = Private("torch._C:_current_graph_task_id", "dropping the same layers in a recomputation")
SAVED_TENSOR_HOOKS = Private(
    "torch._C:_autograd._top_saved_tensors_default_hooks", "dropping the same layers in a recomputation"
)
CHECKPOINT_RECORD = Private(
    "torch.utils.checkpoint:_CheckpointFrame", "dropping the same layers in a recomputation", inside=("recompute_fn",)
)
UNPACK_HOOK = PrivateVariable(
    "torch.utils.checkpoint:_checkpoint_hook.__init__",
    "dropping the same layers in a recomputation",
    inside=("pack_hook.frame",),
    variable="frame",
    inner="unpack_hook",
)
REENTRANT_FORWARD = PrivateVariable(
    "torch.utils.checkpoint:CheckpointFunction.forward",
    "dropping the same layers in a reentrant recomputation",
    inside=("run_function",),
    variable="ctx",
)
REENTRANT_BACKWARD = PrivateVariable(
    "torch.utils.checkpoint:CheckpointFunction.backward",
    "dropping the same layers in a reentrant recomputation",
    inside=("run_function",),
    variable="ctx",
)

# torch: modules, and ranks that train one together.
FORWARD_HOOKS = PrivateAttribute(
    "torch.nn:Module", "recording the hidden states and attentions of dropped layers", attribute="_forward_hooks"
)
FORWARD_PRE_HOOKS = PrivateAttribute(
    "torch.nn:Module", "sharing no layer between sub-networks that does more", attribute="_forward_pre_hooks"
)
CHILDREN = PrivateAttribute("torch.nn:Module", "cutting a stack in place and undoing it", attribute="_modules")
PARAMETERS = PrivateAttribute("torch.nn:Module", "seeing what is sharded, and what is trained", attribute="_parameters")
BUFFERS = PrivateAttribute("torch.nn:Module", "putting back buffers that an evaluation casts", attribute="_buffers")
TENSOR_VERSION = PrivateAttribute("torch:Tensor", "sharing no output that has been written into", attribute="_version")
WRAPPED_IN_PLACE = (
    PrivateAttribute("torch._dynamo:OptimizedModule", "naming the models of a module", attribute="_orig_mod"),
    PrivateAttribute(
        "torch.distributed.fsdp:FullyShardedDataParallel",
        "naming the models of a module",
        attribute="_fsdp_wrapped_module",
    ),
    PrivateAttribute(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper:ActivationWrapper",
        "naming the models of a module",
        attribute="_checkpoint_wrapped_module",
    ),
)
CLASS_NAME = PrivateMethod("torch.nn:Module._get_name", "shifting labels of causal language models as Trainer does")
IS_REPLICA = PrivateAttribute(
    "torch.nn:Module._replicate_for_data_parallel", "refusing DataParallel", attribute="_is_replica"
)
ACTIVE_DDP = Private(
    "torch.nn.parallel:DistributedDataParallel._get_active_ddp_module", "gradients of dropped layers under DDP"
)
RANKS_STORE = Private(
    "torch.distributed:distributed_c10d._get_default_store",
    "comparing the draws, or the models, of ranks before they wait for each other",
)
CHECKPOINT_WRAPPER = Private(
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper:ActivationWrapper",
    "refusing models whose layers are wrapped already",
)

# transformers: what a forward records.
ACTIVE_COLLECTOR = Private(
    "transformers.utils.output_capturing:_active_collector.get",
    "recording the hidden states and attentions of dropped layers",
)
OUTPUT_HOOK = PrivateVariable(
    "transformers.utils.output_capturing:install_output_capuring_hook",
    "recording the hidden states and attentions of dropped layers",
    variable="key",
    inner="output_capturing_hook",
)
HOOKS_INSTALLED = PrivateAttribute(
    "transformers.utils.output_capturing:install_all_output_capturing_hooks",
    "recording the hidden states and attentions of sub-networks",
    attribute="_output_capturing_hooks_installed",
)
RECORDED_BY_CLASS = Private(
    "transformers.utils.output_capturing:_CAN_RECORD_REGISTRY", "recording the hidden states of LayerDrop classes"
)
CAN_RECORD = PrivateAttribute(
    "transformers:PreTrainedModel",
    "recording the hidden states of LayerDrop classes",
    attribute="_can_record_outputs",
)

# transformers: generation, and what drops nothing.
GENERATE = Private(
    "transformers:GenerationMixin.generate", "dropping no layer while text is generated", parameters=("inputs",)
)
NEXT_INPUTS = Private(
    "transformers:GenerationMixin.prepare_inputs_for_generation", "dropping no layer in a forward with a filled cache"
)
CACHE_ARGUMENTS = {"cache", "past_key_values"}  # from transformers 5.24 on, and before

# transformers: models and configs.
ATTENTION_KIND = PrivateAttribute(
    "transformers:PreTrainedConfig", "knowing which attention a model runs", attribute="_attn_implementation"
)
COMMIT = PrivateAttribute(
    "transformers:PreTrainedConfig", "noting the commit that a checkpoint was cut from", attribute="_commit_hash"
)
NAME_OR_PATH = PrivateAttribute(
    "transformers:PreTrainedConfig", "telling the same model in another folder", attribute="_name_or_path"
)
FROM_CONFIG = PrivateMethod(
    "transformers:PreTrainedModel._from_config", "building models from configs", parameters=("config",)
)
LOAD_WEIGHTS = PrivateMethod(
    "transformers:PreTrainedModel._load_pretrained_model",
    "loading the kept layers alone",
    parameters=("model", "state_dict", "checkpoint_files", "load_config"),
)
NOT_LOADED = PrivateAttribute(
    "transformers:PreTrainedModel",
    "passing over weights that a class declares to be none of its own",
    attribute="_keys_to_ignore_on_load_unexpected",
)
NOT_MISSED = PrivateAttribute(
    "transformers:PreTrainedModel",
    "passing over weights that a class makes itself where a checkpoint has none",
    attribute="_keys_to_ignore_on_load_missing",
)
ADAPTER_LOADED = PrivateAttribute(
    "transformers:PreTrainedModel", "refusing to save an adapter without its base", attribute="_hf_peft_config_loaded"
)
CHECKPOINTING = PrivateAttribute(
    "transformers:PreTrainedModel",
    "refusing checkpointing that DDP cannot do",
    attribute="_gradient_checkpointing_func",
)
CLASS_BY_CONFIG = Private(
    "transformers.models.auto.auto_factory:_get_model_class",
    "choosing the model class of a config",
    parameters=("config", "model_mapping"),
)
CLASSES_BY_CONFIG = PrivateAttribute(
    "transformers:AutoModel", "choosing the model class of a config", attribute="_model_mapping"
)
LAYER_OVERRIDES = Private(
    "transformers.integrations.heterogeneity.configuration_utils:_HeterogeneitySpec",
    "cutting what a config says of single layers",
    parameters=("per_layer_overrides",),
)
OUT_INDICES = PrivateAttribute(
    "transformers.backbone_utils:BackboneConfigMixin", "cutting the outputs of a backbone", attribute="_out_indices"
)
OUT_FEATURES = PrivateAttribute(
    "transformers.backbone_utils:BackboneConfigMixin", "cutting the outputs of a backbone", attribute="_out_features"
)
PIPELINE_PARTS = {
    part: PrivateAttribute(
        "transformers:Pipeline", "giving a pipeline what it needs beside its model", attribute=f"_load_{part}"
    )
    for part in ("tokenizer", "image_processor", "feature_extractor", "processor", "video_processor")
}

# transformers: Trainer.
TRAINING_STEP = Private(
    "transformers:Trainer.training_step", "refusing a Trainer that does not tell its steps", parameters=("inputs",)
)
STEP_LOSS = PrivateAttribute("transformers:Trainer", "learning the drop rates from the loss", attribute="tr_loss_step")
EVALUATION_LOOP = Private(
    "transformers:Trainer.evaluation_loop", "measuring all depths on the same batches", inside=("step", "inputs")
)
MEMORY_TRACKER = PrivateAttribute(
    "transformers:Trainer", "measuring without a record of the memory", attribute="_memory_tracker"
)
SIGNATURE_COLUMNS = PrivateAttribute(
    "transformers:Trainer", "keeping the numbers of rows for the metrics", attribute="_signature_columns"
)
SET_SIGNATURE_COLUMNS = PrivateMethod(
    "transformers:Trainer._set_signature_columns_if_needed", "keeping the numbers of rows for the metrics"
)
SHIFTED_LABELS = PrivateAttribute(
    "transformers:Trainer", "counting labels as Trainer does", attribute="_loss_shifts_labels"
)

# PEFT and DeepSpeed.
ADAPTERS = PrivateMethod(
    "peft.tuners.tuners_utils:BaseTunerLayer._get_available_adapters", "cutting adapters with their base"
)
ZERO_OPTIMIZER = PrivateAttribute(
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3",
    "emptying ZeRO-3's gradients of dropped layers",
    inside=("micro_step_id", "set_local_grad_for_param", "offload_optimizer", "gradient_accumulation_steps"),
    attribute="_z3_optimizer",
)

# typer: base of all that it says of wrong arguments. Newer releases bring a copy of click, so it has no public name.
USAGE_ERROR = Private("typer:BadParameter", "telling wrong arguments in one line")


def usage_error() -> type[Any]:
    """Return the class of all errors of usage that typer raises."""
    bases: tuple[type, ...] = USAGE_ERROR.value.__mro__
    for base in bases:
        if base.__name__ == "UsageError":
            return base
    raise USAGE_ERROR.changed("typer.BadParameter is no UsageError any more")


def cache_arguments() -> set[str]:
    """Return the names under which forwards take the cache of a generation."""
    if CACHE_ARGUMENTS.isdisjoint(inspect.signature(NEXT_INPUTS.value).parameters):
        raise NEXT_INPUTS.changed(f"models take their cache under none of the names {sorted(CACHE_ARGUMENTS)}")
    return CACHE_ARGUMENTS


def build_from_config(cls: type[Any], config: Any, **kwargs: Any) -> Any:
    """Build a model with random weights as transformers' Auto classes do: with the config's dtype and attention."""
    return getattr(cls, FROM_CONFIG.name)(config, **kwargs)
