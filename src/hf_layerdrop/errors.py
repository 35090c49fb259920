"""The few errors a caller may want to catch; each is also a ValueError or a RuntimeError."""


class LayerDropError(Exception):
    """Base of every error that hf_layerdrop raises on purpose."""


class LayerDropConfigError(LayerDropError, ValueError):
    """A setting of LayerDrop (rate, shape, schedule, ...) is not allowed."""


class KeepLayersError(LayerDropError, ValueError):
    """A ``keep_layers`` specification cannot be read, or names layers that do not exist."""


class CheckpointError(LayerDropError, ValueError):
    """A checkpoint folder or file is missing, corrupt, or not what its config says."""


class UnsupportedModelError(LayerDropError, ValueError):
    """The model has no stack of layers that can be dropped or pruned; the message says why."""


class TaskError(LayerDropError, ValueError):
    """A task, its data or its metric does not fit: a missing column, an unknown name, labels out of range."""


class TrainingArgumentsError(LayerDropError, ValueError):
    """Trainer refuses its arguments before it takes a step; the message says which."""


class DistillationError(LayerDropError, ValueError):
    """A teacher and a student do not fit each other, or a setting of distillation is not allowed."""


class OutputExistsError(LayerDropError, ValueError):
    """The output folder exists already and nothing allows overwriting it."""


class HubError(LayerDropError, RuntimeError, ValueError):
    """The Hugging Face Hub refused or did not answer; nothing was committed."""


class LayerDropStateError(LayerDropError, RuntimeError):
    """The model is in a state in which this call makes no sense, e.g. remove without inject."""


class MissingExtraError(LayerDropError, ImportError):
    """A library is not installed that comes with an extra of this package; the message says how to install it."""


class IncompatibleVersionError(LayerDropError, RuntimeError):
    """An installed library differs, in something that has no public name, from the versions that are known to work."""
