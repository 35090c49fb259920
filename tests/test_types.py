"""What a type checker and an editor know of the package: real types, no name too many, and misuse is found."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import hf_layerdrop
from hf_layerdrop.models.arguments import FromPretrained
from readme_blocks import find_blocks

PACKAGE = Path(hf_layerdrop.__file__).parent
PROJECT = Path(__file__).parents[1]

# Each line that is wrong ends in the codes of the errors that it has to have; all others have none.
USES = """
from pathlib import Path
import numpy as np
import torch
from hf_layerdrop import no_such_name  # attr-defined
from hf_layerdrop import AutoLayerDropModelForCausalLM, AutoLayerDropModelForMaskedLM, KeepLayers, LayerDropBertModel
from hf_layerdrop import LayerDropConfig, evaluate_depths, load_checkpoint, parse_keep_layers, prune_layers
from hf_layerdrop import LossScaling, inject_layerdrop, save_pruned, search_layers
from hf_layerdrop.models.mixin import no_such_class  # attr-defined
from transformers import BertConfig, BertModel, PreTrainedModel, Trainer

LayerDropConfig(nonsense=3)  # call-arg
LayerDropConfig(rate="often")  # arg-type
LayerDropConfig.for_depth(6, of=12, seed=1, shape="linear").nonsense  # attr-defined
LayerDropConfig.for_depth(6, of=12, sede=1)  # call-arg

model = LayerDropBertModel.from_pretrained("x", layerdrop=0.2, keep_layers="::2", num_labels=3, hidden_dropout_prob=0.0)
plain: BertModel = model
config: BertConfig = model.config
model.no_such_method()  # operator
own: LayerDropBertModel = LayerDropBertModel.from_pretrained("x", layerdrop={"encoder": 0.2}, config=config)
LayerDropBertModel.from_pretrained("x", layerdropp=0.2)  # call-arg
LayerDropBertModel.from_pretrained("x", layerdrop="often")  # arg-type
LayerDropBertModel.from_pretrained("x", num_labels="three")  # arg-type
LayerDropBertModel.from_pretrained(3)  # arg-type
AutoLayerDropModelForMaskedLM.from_pretrained("x", layerdropp=0.2)  # call-arg
masked: PreTrainedModel = AutoLayerDropModelForMaskedLM.from_pretrained("x", keep_layers=6)
AutoLayerDropModelForMaskedLM.from_config(config, layerdropp=0.2)  # call-arg
AutoLayerDropModelForCausalLM.from_pretrained("x").generate(max_new_tokens=3)
load_checkpoint("x", keep_layer=6)  # call-arg

selection = search_layers(model, [], depth=6, width=3)
search_layers(1, foo="bar")  # arg-type call-arg
search_layers(model, [], depth=6.5)  # arg-type
search_layers(model, [], width="wide")  # arg-type
evaluate_depths(model, [{"input_ids": 1}], depths=[6, "::2", [0, -1]], metric="accuracy")
evaluate_depths(model, [{"input_ids": 1}], depths=[6.5])  # list-item
evaluate_depths(model, [{"input_ids": 1}], depths=6)  # arg-type
evaluate_depths(model, 3, depths=[6])  # arg-type

every: list[KeepLayers] = [6, "6,", [0, -1], (0, 5), range(3), slice(None, None, 2), {"encoder": "::2", "decoder": 3}]
every += [None, {0, 2}, np.array([0, 2]), torch.tensor([0, 2]), Path("kept.json"), selection, selection.keep_layers]
by_stack = {"encoder": [0, 2]}
prune_layers(model, by_stack)
prune_layers(model, keep_layers=3.5)  # arg-type
prune_layers(model, keep_layers=[0.5])  # list-item
prune_layers(model, keep_layers={"encoder": 0.5})  # dict-item
parse_keep_layers(selection, {"encoder": "six"})  # dict-item
save_pruned(model, "out", keep_layers=6, tokenizer=True)  # arg-type
inject_layerdrop(model, {"encoder": 0.2, "decoder": [0.1, 0.2]})
inject_layerdrop(model, LayerDropConfig([0.1, 0.2], never_drop={"encoder": [0, -1]}, structure=("head", "layer")))

class OwnTrainer(LossScaling, Trainer):
    pass

evaluate_depths(OwnTrainer(model), depths=range(1, 7), metric=lambda prediction: {"right": 1.0})
"""

# As a user's `mypy --strict`, but that it reads of transformers' families those that are named here: all take a minute.
FAMILIES = ("auto", "bart", "bert", "roberta")
MYPY = "[mypy]\nstrict = true\nignore_missing_imports = true\n"
MYPY += "[mypy-transformers.models.*]\nfollow_imports = skip\n"
MYPY += "[mypy-transformers.models]\nfollow_imports = normal\n"
MYPY += "".join(f"[mypy-transformers.models.{name}.*]\nfollow_imports = normal\n" for name in FAMILIES)


def test_type_checkers_see_the_names_that_are_loaded():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If)).body
    seen = {alias.asname: node.module for node in guarded for alias in node.names if alias.asname == alias.name}
    assert len(guarded) == len(seen)
    assert seen == hf_layerdrop._HOME_OF


def documented_code() -> Iterator[tuple[str, str]]:
    """Yield the Python of README, docs, notebooks and examples, with the name of its file."""
    for path in [PROJECT / "README.md", *PROJECT.glob("docs/*.md")]:
        blocks = find_blocks(path.read_text(encoding="utf-8"))
        yield path.name, "\n".join(block.code for block in blocks if block.language == "python")
    for path in PROJECT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = [line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]]
        yield path.name, "".join(line for line in lines if not line.startswith(("!", "%")))  # which are no Python
    for path in PROJECT.glob("examples/*.py"):
        yield path.name, path.read_text(encoding="utf-8")


def test_documented_names_come_from_the_package_itself():
    imported: dict[str, set[str]] = {}
    for file, code in documented_code():
        for node in ast.walk(ast.parse(code)):
            names = {node.module} if isinstance(node, ast.ImportFrom) else set()
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            if any(name.split(".")[0] == "hf_layerdrop" for name in names):
                imported.setdefault(file, set()).update(names)
    assert {"README.md", "01_quickstart.ipynb", "integrations.md", "pytorch_loop.py"} <= imported.keys()
    for names in imported.values():
        assert names <= {"hf_layerdrop", *hf_layerdrop._HOME_OF}


def functions_of(name: str) -> Iterator[tuple[str, object]]:
    """Yield a public function, or those of a public class that the package defines, with their names."""
    value = getattr(hf_layerdrop, name)
    if inspect.isfunction(value):
        yield name, inspect.unwrap(value)
    for base in value.__mro__ if inspect.isclass(value) else ():
        if base.__module__.startswith("hf_layerdrop"):
            for method, function in vars(base).items():
                function = getattr(function, "fget", None) or getattr(function, "__func__", function)
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    yield f"{name}.{method}", function


def test_no_public_signature_says_any_where_a_type_can_be_said():
    handed_on = {"args", "kwargs", "load_kwargs", "settings"}  # to transformers, as they are
    # JSON, the inputs of a model, what a model gives: transformers and Lightning say no more
    open_to_all = re.compile(r"(dict|Mapping)\[str, Any\]|tuple\[torch\.Tensor, Any\]")
    found = {
        f"{name}({argument}: {annotation})"
        for public in {*hf_layerdrop.__all__} - {"__version__"}
        for name, function in functions_of(public)
        if "hf_layerdrop" in function.__code__.co_filename
        for argument, annotation in function.__annotations__.items()
        if argument not in handed_on and re.search(r"\bAny\b", open_to_all.sub("", str(annotation)))
    }
    assert not found
    assert not [
        name for name, annotation in hf_layerdrop.LayerDropConfig.__annotations__.items() if annotation == "Any"
    ]


def test_from_pretrained_takes_what_transformers_documents():
    documented = set(re.findall(r"^ {12}(\w+) ?\(`", PreTrainedModel.from_pretrained.__doc__, re.MULTILINE))
    named = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    assert {"state_dict", "device_map", "dtype", "attn_implementation"} < documented
    others = {"pretrained_model_name_or_path", "model_args", "kwargs"}
    assert documented | named <= {*FromPretrained.__annotations__, *others}


@pytest.fixture(scope="module")
def errors(request, tmp_path_factory) -> dict[str, list[tuple[int, str]]]:
    """Check all files as a user's ``mypy --strict`` does, once: the line and code of each error by file."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "uses.py").write_text(USES, encoding="utf-8")
    blocks = find_blocks((PROJECT / "README.md").read_text(encoding="utf-8"))
    code = "\n".join(block.code for block in blocks if block.language == "python")
    (folder / "readme.py").write_text(code, encoding="utf-8")
    (folder / "mypy.ini").write_text(MYPY, encoding="utf-8")
    files = ["uses.py", "readme.py", *sorted(map(str, (PROJECT / "examples").glob("*.py")))]
    cache = request.config.cache.mkdir("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache), "--no-pretty", *files],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    print(done.stdout)  # noqa: T201 - what mypy says, where a test fails
    found: dict[str, list[tuple[int, str]]] = {}
    for name, line, code in re.findall(r"^(\S+?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE):
        found.setdefault(Path(name).name, []).append((int(line), code))
    assert done.stdout.count(": error: ") == sum(map(len, found.values())), done.stdout
    return found


def test_a_type_checker_finds_wrong_uses_and_no_others(errors):
    wanted = [
        (number, code)
        for number, line in enumerate(USES.splitlines(), start=1)
        for code in line.partition("  # ")[2].split()
    ]
    assert sorted(errors["uses.py"]) == sorted(wanted)


def test_the_readme_and_the_examples_pass_strictly(errors):
    assert errors.keys() <= {"uses.py"}
