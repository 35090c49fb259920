"""Walk over every model type, each in a process of its own with limits, and keep a journal to resume from."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS, CPU_SECONDS, BYTES = 900, 60, 10 * 2**30  # seconds by the clock only end what hangs
PARTS = ("checks", "heads", "settings", "dice")
Entry = dict[str, Any]


def read_journal(path: Path) -> dict[str, Entry]:
    """Return the last entry of each model type."""
    if not path.exists():
        return {}
    entries = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {entry["type"]: entry for entry in entries}


def walk(model_types: Iterable[str], journal: Path, parts: Sequence[str] = PARTS) -> Iterator[Entry]:
    """Examine model types one after the other; each entry is in the journal before it is yielded.

    Of types that are in the journal already, parts of the entry may be renewed alone.
    """
    import torch  # all of this is imported once, here, and inherited by each process
    import transformers
    from transformers import AutoModelForCausalLM, BertModel, GenerationMixin, Trainer  # noqa: F401
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    from hf_layerdrop.architectures.families import refusal

    from . import heads

    beside = {"heads": heads.examine_heads, "settings": heads.examine_settings, "dice": heads.examine_dice}
    known = read_journal(journal)

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for model_type in model_types:
        start = time.monotonic()
        entry = known.get(model_type, {"type": model_type})
        if "checks" in parts or "status" not in entry:
            entry |= examined_apart(model_type, examine)
        if not refusal(model_type):
            entry |= {name: examined_apart(model_type, check) for name, check in beside.items() if name in parts}
        if model_type not in MODEL_MAPPING_NAMES and (main := entry.get("heads", {}).get(entry.get("class"))):
            entry |= {**main, "checks": ["heads"]}  # of all cuts of its one head, and not of those that the checks try
        entry["seconds"] = round(time.monotonic() - start, 1)
        with journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        yield entry


def examined_apart(model_type: str, examine: Callable[[str], Entry]) -> Entry:
    """Examine a type in a process of its own, which may hang, grow or die."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_the_child(model_type, examine, writer)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"status": "not buildable", "reason": _death(status)}


def _be_the_child(model_type: str, examine: Callable[[str], Entry], writer: int) -> None:
    signal.alarm(SECONDS)
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        with os.fdopen(writer, "w") as answer:
            json.dump(_or_broken(model_type, examine), answer)
    finally:
        os._exit(0)


def _or_broken(model_type: str, examine: Callable[[str], Entry]) -> Entry:
    try:
        return examine(model_type)
    except Exception as error:
        return {"status": "not buildable", "reason": f"{type(error).__name__}: {error}"[:300]}


def _death(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU):
        return f"its checks took more than {CPU_SECONDS} seconds"
    return "its process died"


def examine(model_type: str) -> Entry:
    """Build a type tiny, run all checks, and tell how it went."""
    import warnings

    from hf_layerdrop.architectures.families import refusal
    from hf_layerdrop.architectures.stacks import find_stacks
    from hf_layerdrop.errors import UnsupportedModelError

    from .checks import CheckFailedError, headers_agree, run_checks
    from .tiny import CannotBuildError, PlainFailsError, build_tiny, in_short

    warnings.simplefilter("ignore")
    if reason := refusal(model_type):
        return {"status": "refused", "reason": reason}
    entry: Entry = {}
    try:
        tiny = build_tiny(model_type)
        entry["class"] = type(tiny.model).__name__
        entry["inputs"] = sorted(tiny.batch)
        entry["stacks"] = {name: stack.path for name, stack in find_stacks(tiny.model).items()}
        entry["parts"] = sorted({stack.model_type for stack in find_stacks(tiny.model).values()})
        entry["headers"] = headers_agree(tiny)
        return {**entry, "status": "supported", "checks": run_checks(tiny)}
    except (CannotBuildError, PlainFailsError) as error:
        return {**entry, "status": "not buildable", "reason": str(error)}
    except UnsupportedModelError as error:
        return {**entry, "status": "refused", "reason": str(error)}
    except CheckFailedError as error:
        return {**entry, "status": "failed", "reason": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where][-6:]
        return {**entry, "status": "failed", "reason": in_short(error), "where": places}
