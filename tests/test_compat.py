"""Private names of other libraries: in one module, and told in a sentence when they change."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

import hf_layerdrop
from hf_layerdrop import compat
from hf_layerdrop.errors import IncompatibleVersionError
from warm import run_python

pytestmark = pytest.mark.cases(1_000)  # all names, also where transformers is the oldest

ROOT = Path(hf_layerdrop.__file__).parent
ELSEWHERE = [path for path in sorted(ROOT.rglob("*.py")) if path.name != "compat.py"]
# What this package itself puts on models, layers, checkpoints and classes of others.
OWN = ("_layerdrop", "_adopted_", "_prefix_runner", "_encoder_memory")
# Suffixes, not names; `compat.py` says which names of files and flags these end.
SUFFIXES = (
    "_per_second",
    "_model_preparation_time",
    "_compilation_time",
    "_mm",
    "_config",
    "_pattern",
    "_runtime",
    "_token_id",
)


def entries_of(found: object) -> list[tuple[str, object]]:
    """Return the entries that a name of compat.py stands for, one or several, each with its key."""
    if isinstance(found, dict):
        return list(found.items())
    return [(str(number), entry) for number, entry in enumerate(found)] if isinstance(found, tuple) else [("", found)]


ENTRIES = {
    f"{name}{key and f'[{key}]'}": entry
    for name, found in vars(compat).items()
    for key, entry in entries_of(found)
    if isinstance(entry, compat.Private)
}


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def is_foreign(name: str) -> bool:
    return is_private(name) and not name.startswith(OWN)


def uses(tree: ast.Module) -> list[str]:
    """Return the private names of others that a module imports, looks up, or names in a string."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    in_sentences = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("hf_layerdrop", "__future__")):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if is_private(name)]
        elif isinstance(node, ast.Import):
            found += [name for alias in node.names for name in alias.name.split(".") if is_private(name)]
        elif isinstance(node, ast.Attribute) and is_foreign(node.attr):
            ours = ast.unparse(node.value) in ("self", "cls", "super()") and node.attr in defined
            found += [] if ours else [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            foreign = is_foreign(node.value) and node.value not in SUFFIXES
            found += [repr(node.value)] if foreign and id(node) not in in_sentences else []
        elif isinstance(node, ast.Attribute) and node.attr in ("f_locals", "getclosurevars"):
            found += [] if is_variable(tree, node) else [ast.unparse(node)]
    return found


def is_variable(tree: ast.Module, node: ast.Attribute) -> bool:
    """Tell whether a frame is asked for a variable that is not spelled out here; ``self`` is everyone's."""
    parents = {id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    above = parents[id(node)]
    if isinstance(above, ast.Subscript):
        asked: ast.AST = above.slice
    elif isinstance(above, ast.Attribute) and isinstance(call := parents[id(above)], ast.Call):
        asked = call.args[0]
    else:
        return True  # all of them
    return not isinstance(asked, ast.Constant) or asked.value == "self"


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_stand_in_one_module(path: Path) -> None:
    found = uses(ast.parse(path.read_text(encoding="utf-8")))
    assert not found, "give each a place in compat.py, with what it is for"


@pytest.mark.parametrize(
    "line",
    [
        "from torch._dynamo import OptimizedModule",
        "from transformers.utils.output_capturing import _active_collector",
        "import torch._dynamo",
        "model._forward_hooks",
        "self._compiled_call_impl",
        "getattr(model, '_is_replica', False)",
        "frame.f_locals['tr_loss_step']",
        "frame.f_locals.get('ctx')",
    ],
)
def test_the_rule_sees_private_names(line: str) -> None:
    assert uses(ast.parse(line))


def test_no_class_hides_a_private_name_of_its_bases() -> None:
    """What is meant to replace one is put there by compat.py, which has looked that it is there."""
    for module in pkgutil.walk_packages(hf_layerdrop.__path__, "hf_layerdrop."):
        if "_metric" not in module.name and not module.name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # of Lightning
                importlib.import_module(module.name)
    replaced = {compat.CLASS_NAME.name, compat.SET_SIGNATURE_COLUMNS.name, compat.LOAD_WEIGHTS.name}
    for cls in all_classes(object):
        if home(cls) == "hf_layerdrop" and not issubclass(cls, torch.autograd.Function):
            others = [base for base in cls.__mro__ if home(base) in compat.TESTED]
            own = [base for base in cls.__mro__ if home(base) == "hf_layerdrop"]
            ours = {name for base in own for name in vars(base) if is_foreign(name)}
            layers = [nn.Module] if cls.__module__.startswith("hf_layerdrop.injection") else []  # their mixins
            assert not ours & {name for base in [*others, *layers] for name in vars(base)} - replaced, cls


def home(cls: type) -> str:
    return (cls.__module__ or "").partition(".")[0]


def all_classes(cls: type) -> set[type]:
    below = type.__subclasses__(cls)
    return {cls}.union(*map(all_classes, [one for one in below if one is not type]))


def look_up(entry: compat.Private) -> object:
    """Look a name up as if for the first time."""
    entry = replace(entry)
    return getattr(entry, "code" if isinstance(entry, compat.PrivateVariable) else "name", None) or entry.value


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_is_used_of_a_library_is_there(entry: compat.Private) -> None:
    library = entry.path.partition(":")[0].partition(".")[0]
    assert library in compat.TESTED
    pytest.importorskip(library)
    assert look_up(entry) is not None
    assert entry.purpose


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_name_that_is_gone_is_told(entry: compat.Private, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = entry.path.partition(":")
    pytest.importorskip(module.partition(".")[0])
    parent, _, last = name.rpartition(".")
    home = pkgutil.resolve_name(f"{module}:{parent}")
    if last in vars(home) and type(home).__name__ != "_LazyModule":
        monkeypatch.delattr(home, last)
    else:  # transformers would find a name of its root again
        entry = replace(entry, path=f"{module}:{last}_of_before")
    with pytest.raises(IncompatibleVersionError) as caught:
        look_up(entry)
    told = str(caught.value)
    assert version(module.partition(".")[0]) in told
    assert entry.purpose in told
    assert f"pip install '{module.partition('.')[0]}==" in told


@pytest.mark.parametrize(
    ("entry", "changed", "told"),
    [
        (compat.PrivateAttribute, {"attribute": "_of_before"}, "has no '_of_before' any more"),
        (compat.PrivateVariable, {"variable": "of_before"}, "has no variable 'of_before' any more"),
        (compat.PrivateVariable, {"inner": "of_before"}, "has no variable"),
        (compat.Private, {"parameters": ("of_before",)}, "does not take 'of_before' any more"),
        (compat.Private, {"inside": ("of_before",)}, "does not use 'of_before' any more"),
    ],
)
def test_what_has_changed_is_told(entry: type, changed: dict[str, object], told: str) -> None:
    like = [found for found in ENTRIES.values() if isinstance(found, entry) and "deepspeed" not in found.path]
    alike = [found for found in like if all(getattr(found, field) for field in changed)]
    assert alike
    for found in alike:
        with pytest.raises(IncompatibleVersionError, match=told):
            look_up(replace(found, **changed))


def renamed(function: str, old: str, new: str) -> str:
    """Return code that gives a function the code it would have after a variable or a function inside it was renamed."""
    return f"""
import types
from pkgutil import resolve_name
def renamed(code):
    names = {{kind: tuple({new!r} if name == {old!r} else name for name in getattr(code, kind))
             for kind in ("co_varnames", "co_freevars", "co_cellvars", "co_names")}}
    consts = tuple(renamed(part) if isinstance(part, types.CodeType) else part for part in code.co_consts)
    return code.replace(**names, co_name={new!r} if code.co_name == {old!r} else code.co_name, co_consts=consts)
function = resolve_name({function!r})
function.__code__ = renamed(function.__code__)
"""


FORGET = """
import sys
for name in [name for name in sys.modules if name.startswith("hf_layerdrop")]:
    del sys.modules[name]
"""
INJECT = """
import hf_layerdrop
from transformers import BertConfig, BertModel
model = BertModel(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=6, intermediate_size=16))
hf_layerdrop.inject_layerdrop(model, 0.5)
"""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            renamed(
                "transformers.utils.output_capturing:install_output_capuring_hook",
                "output_capturing_hook",
                "capturing_hook",
            ),
            "output_capturing_hook has no variable 'key' any more, which it needs for recording the hidden states",
        ),
        (
            "from transformers import GenerationMixin as g\ng.generate_text = g.generate\ndel g.generate",
            "GenerationMixin.generate is gone, which it needs for dropping no layer while text is generated",
        ),
        (
            renamed("torch.utils.checkpoint:_checkpoint_hook.__init__", "frame", "record"),
            "does not use 'pack_hook.frame' any more, which it needs for dropping the same layers in a recomputation",
        ),
    ],
    ids=["hook", "generate", "checkpoint"],
)
def test_a_model_is_not_injected_where_it_would_be_wrong_without_a_word(change: str, told: str) -> None:
    """A renamed hook gave 3 or 5 hidden states in place of 7; a renamed ``generate`` dropped layers inside of it."""
    done = run_python("-c", FORGET + change + INJECT)  # what is imported has looked for its names already
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hf_layerdrop.errors.IncompatibleVersionError: ")
    assert told in last


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, hf_layerdrop.compat; sys.exit(bool({'torch', 'transformers', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_collector_that_is_read_is_the_one_that_hooks_write_to() -> None:
    from transformers.utils import output_capturing

    layer, collected = nn.Linear(2, 2), {"attentions": []}
    output_capturing.install_output_capuring_hook(layer, "attentions", 1)
    (hook,) = getattr(layer, compat.FORWARD_HOOKS.name).values()
    assert compat.OUTPUT_HOOK.of_closure(hook) == "attentions"
    assert inspect.unwrap(hook).__code__ is compat.OUTPUT_HOOK.code
    token = output_capturing._active_collector.set(collected)
    try:
        layer(torch.zeros(1, 2))
        assert compat.ACTIVE_COLLECTOR.value() is collected
    finally:
        output_capturing._active_collector.reset(token)
    assert len(collected["attentions"]) == 1
