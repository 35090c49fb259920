"""The few errors a caller may want to catch; each is also a ValueError, a RuntimeError or an ImportError."""

from importlib.util import find_spec

# What comes with the extras of this package, by the names under which it is imported.
EXTRAS = {
    "tasks": ("datasets", "evaluate", "sklearn", "scipy", "sacrebleu", "rouge_score", "pyarrow", "pandas"),
    "reports": ("matplotlib", "plotly"),
    "app": ("gradio",),
    "lora": ("peft",),
    "lm-eval": ("lm_eval",),
}


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


class HealingError(LayerDropError, ValueError):
    """A cut cannot be healed as asked: nothing was cut, no weight takes a map, or a setting is not allowed."""


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


def require(*libraries: str) -> None:
    """Refuse to begin what needs a library that is not installed, of those that come with extras of this package.

    Raises:
        MissingExtraError: If one is missing.
    """
    for library in libraries:
        extra = next(extra for extra, held in EXTRAS.items() if library in held)
        if not _is_installed(library):
            raise MissingExtraError(
                f'This needs {library}, which is not installed: pip install "hf-layerdrop[{extra}]".', name=library
            )


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # refused by an import hook, or made without a spec
        return False


def said_by(error: BaseException) -> str:
    """Return what an error of another library says, in one line: its kind, and the first paragraph of its message."""
    said = " ".join(str(error).strip().partition("\n\n")[0].split()).rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
