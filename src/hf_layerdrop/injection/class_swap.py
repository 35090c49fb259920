"""Change the class of a module in place: give it a mixin in front of its own class, and take it back.

This is how a layer learns to be skipped. Of the four ways that are in use (wrap the layer, replace its ``forward``,
skip while iterating over the list, change its class), only this one keeps the weight names, leaves ``self.layers`` a
plain list that can be enumerated and sliced, and decides in ``__call__``, before any hook: FSDP gathers a layer's
parameters and accelerate moves its inputs in hooks, which a dropped layer must not pay for.

The new class keeps ``__name__``, ``__qualname__`` and ``__module__``, because ``_no_split_modules``, ``device_map``,
FSDP wrap policies and regional compilation compare names. Pickle and deepcopy work through the class and its mixins.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_layerdrop.errors import LayerDropStateError

_ADOPTED: dict[tuple[type, type], type] = {}


def adopted_class(base: type, mixin: type) -> type:
    """Return the subclass of ``base`` that has ``mixin`` in front, the same object at every call."""
    if (base, mixin) not in _ADOPTED:
        namespace = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
            "_adopted_from": base,
            "_adopted_with": mixin,
        }
        adopted = type(base.__name__, (mixin, base), namespace)
        # Transformers wraps the forward of every subclass of a layer that can be checkpointed. That of the base is
        # wrapped already, and each call would go through both.
        if "forward" in vars(adopted):
            del adopted.forward  # type: ignore[attr-defined]
        _ADOPTED[base, mixin] = adopted
    return _ADOPTED[base, mixin]


def adopt(module: nn.Module, mixin: type) -> None:
    """Put ``mixin`` in front of the module's class, in place."""
    module.__class__ = adopted_class(type(module), mixin)


def release(module: nn.Module, mixin: type) -> None:
    """Undo `adopt`, in place.

    Raises:
        LayerDropStateError: If the class was changed again since, e.g. by FSDP; that has to be undone first.
    """
    if type(module).__dict__.get("_adopted_with") is not mixin:
        raise LayerDropStateError(
            f"The class of a {type(module).__name__} was changed after LayerDrop was injected (FSDP does that); "
            "inject and remove LayerDrop before the model is wrapped."
        )
    module.__class__ = type(module).__dict__["_adopted_from"]


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle and copy by (class, mixins): the adopted class itself cannot be imported by its name."""
    reduced: Any = object.__reduce_ex__(self, protocol)
    return (_new_adopted, _made_of(type(self)), *reduced[2:])


def _made_of(cls: Any) -> tuple[type, ...]:
    """Return the class that was there first, and the mixins that were put in front of it, in their order."""
    if not hasattr(cls, "_adopted_from"):
        return (cls,)
    return (*_made_of(cls._adopted_from), cls._adopted_with)


def _new_adopted(base: type, *mixins: type) -> Any:
    adopted: Any = base
    for mixin in mixins:
        adopted = adopted_class(adopted, mixin)
    return adopted.__new__(adopted)
