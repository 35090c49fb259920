"""Tell which forward is running: an ordinary one, one of a generation, or the second run of a checkpointed one.

`torch.utils.checkpoint` runs a forward again in the backward pass, and both runs must drop the same layers. When the
checkpoint is inside a layer's ``__call__`` nothing is needed, since the decision to drop lies outside. When it is
around a whole layer or a whole model, the two runs have one object in common, the checkpoint's own record of that
call, and the masks drawn in the first run are kept on it for the second. There is no public way to that object, so it
is read from the frames of the Python stack; this happens only in training forwards without gradient (the first run of
a reentrant checkpoint, and ``generate``) and inside the backward pass.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.injection.call_stack import callers, is_running

_REENTRANT_FORWARD, _REENTRANT_BACKWARD = compat.REENTRANT_FORWARD.code, compat.REENTRANT_BACKWARD.code
_RECORD = compat.CHECKPOINT_RECORD.value
_UNPACK, _UNPACK_VARIABLE = compat.UNPACK_HOOK.code.co_name, compat.UNPACK_HOOK.variable
_GENERATE = compat.GENERATE.code
_graph_task, _saved_tensor_hooks = compat.GRAPH_TASK.value, compat.SAVED_TENSOR_HOOKS.value
_CACHE_ARGUMENTS = compat.cache_arguments()


def in_backward() -> bool:
    """Tell whether the caller runs inside a backward pass, where every forward is a recomputation."""
    return _graph_task() != -1


def inside_generate() -> bool:
    """Tell whether ``generate`` is among the callers."""
    return is_running(_GENERATE)


def inside_own_generate() -> bool:
    """Tell whether a model's own loop of generation is among the callers: ``generate`` or ``generate_speech``, say."""
    for frame in callers():
        code = frame.f_code
        named_so = code.co_argcount and code.co_name.lstrip("_").startswith("generate")
        if named_so and isinstance(frame.f_locals.get(code.co_varnames[0]), nn.Module):
            return True
    return False


def inside_trainer() -> bool:
    """Tell whether a Trainer's training loop is among the callers."""
    if "transformers.trainer" not in sys.modules:  # what was not imported is not running
        return False
    return is_running(compat.TRAINING_STEP.code)


def cache_of_caller() -> Any | None:
    """Return the cache that the innermost forward among the callers was given, if it takes one."""
    for frame in callers():
        code = frame.f_code
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]  # local variables come after them
        if code.co_name == "forward" and (names := _CACHE_ARGUMENTS.intersection(arguments)):
            return frame.f_locals.get(names.pop())
    return None


def first_run_record() -> Any | None:
    """Return the record of the checkpoint whose first run this is, or None if no checkpoint is around the caller."""
    if torch.is_grad_enabled():
        return _frame_of_saved_tensor_hooks()
    for frame in callers():
        if frame.f_code is _REENTRANT_FORWARD:
            return frame.f_locals[compat.REENTRANT_FORWARD.variable]
    return None


def second_run_record() -> Any | None:
    """Return the record of the checkpoint that is recomputed, or None if the caller is not part of a recomputation."""
    for frame in callers():
        if frame.f_code is _REENTRANT_BACKWARD:
            return frame.f_locals[compat.REENTRANT_BACKWARD.variable]
        held = frame.f_locals.get(_UNPACK_VARIABLE) if frame.f_code.co_name == _UNPACK else None
        if isinstance(held, _RECORD):
            return held
    return None


def _frame_of_saved_tensor_hooks() -> Any | None:
    """Return the non-reentrant checkpoint's record: the innermost saved-tensor hooks hold it in a closure."""
    hooks = _saved_tensor_hooks(True)
    for cell in getattr(hooks[0], "__closure__", None) or () if hooks else ():
        if isinstance(cell.cell_contents, _RECORD):
            return cell.cell_contents
    return None
