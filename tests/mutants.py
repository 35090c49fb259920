# ruff: noqa: T201 - a script
"""Plant no-ops in a copy of the package, one at a time: each must turn tests red.

``python tests/mutants.py [WORD ...]`` tries all mutants, or those whose name holds one of the words. A test suite that
stays green when the draw, the skip or the renumbering does nothing would not notice if they broke.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several mutants are tried at once

import hypothesis  # noqa: F401
import pytest
import torch  # noqa: F401 - imported once, here, and inherited by the process of each mutant

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("hf_layerdrop")
SECONDS = 240
# Plugins of pytest that take long to import, or write beside the tests.
UNUSED = ("anyio", "cacheprovider", "hypothesispytest", "nbmake", "warnings")
AT_ONCE = min(2, os.cpu_count() or 1)
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Mutant:
    """One planted no-op: in ``file``, ``old`` becomes ``new``; one of ``tests`` must fail.

    Attributes:
        name: What no longer happens.
        file: Path in the package.
        old: Text that stands exactly once in the file.
        new: What replaces it.
        tests: Test ids, without the folder, narrow enough to run in seconds.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "the draw always keeps all",
        "draws.py",
        "tuple(number >= rate for rate, number in",
        "tuple(True for rate, number in",
        ("test_injection.py::test_a_sequence_of_draws_has_the_rate_it_was_asked_for",),
    ),
    Mutant(
        "rates are ignored by the draw",
        "draws.py",
        "tuple(number >= rate for rate, number in",
        "tuple(number >= 0.5 for rate, number in",
        ("test_injection.py::test_a_sequence_of_draws_has_the_rate_it_was_asked_for",),
    ),
    Mutant(
        "the depth sampler always keeps all",
        "draws.py",
        "return masks[int(number * len(masks))]",
        "return masks[-1]",
        ("test_injection.py::test_the_depth_sampler_runs_evenly_spread_sets_alone",),
    ),
    Mutant(
        "the seed is ignored",
        "draws.py",
        'struct.pack("<qqqq", seed, step,',
        'struct.pack("<qqqq", 0, step,',
        ("test_injection.py::test_equal_counters_draw_equal_masks_and_others_do_not",),
    ),
    Mutant(
        "the step is ignored",
        "draws.py",
        'struct.pack("<qqqq", seed, step,',
        'struct.pack("<qqqq", seed, 0,',
        ("test_injection.py::test_equal_counters_draw_equal_masks_and_others_do_not",),
    ),
    Mutant(
        "the micro-step is ignored",
        "draws.py",
        "step, micro_step, forward) + stack",
        "step, 0, forward) + stack",
        ("test_injection.py::test_equal_counters_draw_equal_masks_and_others_do_not",),
    ),
    Mutant(
        "the forward within a step is ignored",
        "draws.py",
        "step, micro_step, forward) + stack",
        "step, micro_step, 0) + stack",
        ("test_injection.py::test_equal_counters_draw_equal_masks_and_others_do_not",),
    ),
    Mutant(
        "the stack's name is ignored",
        "draws.py",
        " + stack.encode()",
        "",
        ("test_injection.py::test_the_two_stacks_of_bart_draw_apart",),
    ),
    Mutant(
        "a dropped layer is run",
        "injection.py",
        "        if call(draw.runs, index):",
        "        if call(draw.runs, index) or True:",
        ("test_injection.py::test_a_dropped_layer_is_never_entered_not_even_its_hooks",),
    ),
    Mutant(
        "layers are dropped in evaluation too",
        "state.py",
        "if self._active and owner.training and",
        "if self._active and",
        ("test_injection.py::test_rate_0_and_eval_are_bit_equal_to_the_untouched_model",),
    ),
    Mutant(
        "hidden states of dropped layers are not recorded",
        "injection.py",
        "            hook(layer, (hidden_states,), hidden_states)",
        "            pass",
        ("test_injection.py::test_hidden_states_repeat_the_input_of_a_dropped_layer_and_its_attentions_are_none",),
    ),
    Mutant(
        "attentions of dropped layers are not recorded",
        "injection.py",
        "                collected[key].append(None)",
        "                pass",
        ("test_injection.py::test_hidden_states_repeat_the_input_of_a_dropped_layer_and_its_attentions_are_none",),
    ),
    Mutant(
        "the model's own LayerDrop goes on",
        "injection.py",
        "_set_native(model, stack, dict.fromkeys(rates, 0.0))",
        "_set_native(model, stack, {})",
        ("test_injection.py::test_native_layerdrop_is_never_applied_on_top_of_ours",),
    ),
    Mutant(
        "the model's own LayerDrop is not put back",
        "injection.py",
        '    restore_native(root, state.originals["native"])\n',
        "",
        ("test_injection.py::test_native_layerdrop_is_never_applied_on_top_of_ours",),
    ),
    Mutant(
        "a recomputation draws again",
        "state.py",
        "            return self._remembered()",
        "            return self.draw()",
        ("test_recomputation.py::test_gradients_equal_those_without_checkpointing",),
    ),
    Mutant(
        "a recomputed layer forgets that it was dropped",
        "state.py",
        "            record._layerdrop_dropped = (id(self), layer)",
        "            pass",
        ("test_recomputation.py::test_a_dropped_layer_is_not_run_by_a_recomputation_either",),
    ),
    Mutant(
        "forwards without gradient advance the count",
        "state.py",
        "        if counts or record is not None:",
        "        if True:",
        ("test_injection.py::test_forwards_without_gradient_and_evaluations_do_not_advance_the_count",),
    ),
    Mutant(
        "a restored state does not continue the count",
        "state.py",
        "draw.step, draw.micro_step, draw.forward = state[",
        "_ = state[",
        ("test_injection.py::test_a_saved_state_continues_the_draws_in_another_process_and_model",),
    ),
    Mutant(
        "Trainer's steps are not followed",
        "stepping.py",
        "begin_step(state.global_step)",
        "begin_step(0)",
        ("test_injection.py::test_trainer_counts_steps_and_micro_steps_and_keeps_a_seed_that_was_given",),
    ),
    Mutant(
        "generate drops layers",
        "state.py",
        "if not counts and recomputation.inside_generate():",
        "if False:",
        ("test_injection.py::test_generate_in_train_mode_drops_nothing_and_draws_nothing",),
    ),
    Mutant(
        "a forward that continues a cache drops layers",
        "state.py",
        "if any(holds_tokens(value) for value in inputs):",
        "if False:",
        ("test_injection.py::test_a_forward_that_continues_a_cache_drops_nothing",),
    ),
    Mutant(
        "layer indices are not renumbered",
        "pruning.py",
        '_assign(part, {"layer_idx": new})',
        '_assign(part, {"layer_idx": old})',
        ("test_pruning.py::test_cached_generation_in_place_equals_the_pruned_and_reloaded_model",),
    ),
    Mutant(
        "the config's depth is not cut",
        "pruning.py",
        "return {**lists, stack.depth_field: len(kept)}",
        "return lists",
        ("test_pruning.py::test_a_cut_equals_the_model_cut_by_hand_tensor_by_tensor",),
    ),
    Mutant(
        "a sub-network in place is not put back",
        "pruning.py",
        "                restore()",
        "                pass",
        ("test_pruning.py::test_a_sub_network_in_place_is_the_pruned_model_and_leaves_no_trace",),
    ),
    Mutant(
        "a sub-network in place drops layers in training",
        "state.py",
        "owner.training and not self.paused",
        "owner.training",
        ("test_pruning.py::test_a_sub_network_of_a_model_in_training_drops_nothing_and_saves_as_the_pruned_model",),
    ),
    Mutant(
        "pruning leaves the rates",
        "pruning.py",
        '        "rates": {name: [0.0] * len(layers) for name, layers in kept.items()},\n',
        "",
        ("test_modeling.py::test_a_pruned_checkpoint_drops_nothing_unasked",),
    ),
    Mutant(
        "the root's layers are forgotten",
        "pruning.py",
        "[roots[name][layer] for layer in layers]",
        "list(layers)",
        ("test_pruning.py::test_provenance_names_the_layers_of_this_checkpoint_and_of_the_root",),
    ),
    Mutant(
        "weights are not renumbered at load",
        "loading.py",
        "{kept[name].index(layer)}",
        "{layer}",
        ("test_loading.py::test_keep_layers_at_load_gives_the_tensors_of_load_and_cut",),
    ),
    Mutant(
        "the first layers are loaded in place of the kept ones",
        "loading.py",
        'yield f"{match[1]}{kept[name].index(layer)}{match[3]}", value',
        'new = f"{match[1]}{kept[name].index(layer)}{match[3]}"\n                    yield new, weights[new]',
        ("test_loading.py::test_keep_layers_at_load_gives_the_tensors_of_load_and_cut",),
    ),
    Mutant(
        "a save writes the name of our class",
        "mixin.py",
        "self.__class__ = _named_as(own, plain_class(own))",
        "self.__class__ = own",
        ("test_modeling.py::test_a_saved_config_is_that_of_the_transformers_class",),
    ),
    Mutant(
        "remembered outputs outlive their batch",
        "prefixes.py",
        "        self._path = steps if held_content == content else []",
        "        pass",
        ("test_evaluation.py::test_each_sub_network_scores_what_it_scores_alone_and_what_the_pruned_model_scores",),
    ),
    Mutant(
        "remembered outputs are not used",
        "prefixes.py",
        "known = position < len(self._path) and self._path[position].layer is layer",
        "known = False",
        ("test_evaluation.py::test_every_prefix_runs_once_a_batch",),
    ),
    Mutant(
        "drop rates are not learned",
        "learning/scorer.py",
        "        self._optimizer.step()\n",
        "",
        ("test_learned.py::test_a_planted_layer_that_does_nothing_gets_the_highest_rate",),
    ),
    Mutant(
        "losses teach nothing about drops",
        "learning/credits.py",
        "gain * surprise * k / v",
        "0.0",
        ("test_learned.py::test_the_losses_alone_find_the_layer_that_is_needed",),
    ),
    Mutant(
        "the mean of learned rates is not held",
        "learning/shares.py",
        "(total - capped * highest) / rest",
        "total / rest",
        ("test_learned.py::test_rates_have_the_mean_the_cap_and_the_order_of_their_shares",),
    ),
    Mutant(
        "what was learned is not restored",
        "state.py",
        "            self.learner.load_state_dict(saved)\n",
        "",
        ("test_learned.py::test_a_resumed_run_equals_the_uninterrupted_one",),
    ),
    Mutant(
        "a masked layer's output is handed on though it is dropped",
        "masking.py",
        "handed_on = torch.where(keep, computed, states.to(computed.dtype))",
        "handed_on = torch.where(keep | True, computed, states.to(computed.dtype))",
        ("test_compile.py::test_masking_gives_the_loss_and_gradients_of_skipping_and_zeros_where_that_gives_none",),
    ),
    Mutant(
        "a dropped masked layer computes from its input",
        "masking.py",
        "shown = torch.where(keep, states, torch.zeros_like(states))",
        "shown = states",
        ("test_compile.py::test_nan_in_a_dropped_layer_reaches_nothing",),
    ),
    Mutant(
        "what a masked layer recomputes forgets its mask",
        "masking.py",
        "record._layerdrop_kept = {**_kept_on(record), id(place): keep}",
        "pass",
        ("test_compile.py::test_recomputed_forwards_use_the_mask_of_their_first_run[around each layer-eager]",),
    ),
    Mutant(
        "hidden states are recorded as a masked layer computed them",
        "masking.py",
        "states[position] = correct",
        "pass",
        ("test_compile.py::test_recorded_hidden_states_are_those_that_were_handed_on",),
    ),
    Mutant(
        "forwards of a compiled graph count as without gradient",
        "masking.py",
        "with torch.set_grad_enabled(with_gradient):",
        "with torch.set_grad_enabled(False):",
        (
            "test_compile.py::test_a_masked_model_has_the_same_state_dict_and_survives_copies_pickle_and_removal",
            "test_compile.py::test_masking_gives_the_loss_and_gradients_of_skipping_and_zeros_where_that_gives_none",
        ),
    ),
    Mutant(
        "the decision to skip is compiled",
        "compiling.py",
        "outside_of_graphs = torch.compiler.disable(recursive=False, reason=ADVICE)",
        "outside_of_graphs = lambda function: function",
        ("test_compile.py::test_one_full_graph_of_a_model_that_skips_is_refused_with_what_to_do",),
    ),
    Mutant(
        "a wrapped model is injected",
        "compiling.py",
        "if isinstance(module, wrapper):",
        "if False:",
        ("test_compile.py::test_a_model_in_a_compiled_wrapper_is_refused_and_stays_as_it_was",),
    ),
]


def verdict(mutant: Mutant, folder: Path) -> str | None:
    """Run the mutant's tests against a copy with the mutant planted; say what is wrong, or return None if they fail."""
    copy = folder / PACKAGE
    shutil.copytree(ROOT / "src" / PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / mutant.file).read_text()
    if (found := source.count(mutant.old)) != 1:
        return f"its text stands {found} times in {mutant.file}, and has to stand there once: {mutant.old!r}"
    (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new))
    sys.path.insert(0, str(folder))  # before the installed package, or the tests would stay green for the wrong reason
    import hf_layerdrop

    if not Path(hf_layerdrop.__file__).is_relative_to(folder):
        return f"the tests would not see it: hf_layerdrop comes from {hf_layerdrop.__file__}"
    tests = [f"tests/{test}" for test in mutant.tests]
    options = ["-x", "--no-header", "--tb=no", f"--timeout={SECONDS}", *(f"-pno:{plugin}" for plugin in UNUSED)]
    code = pytest.main([*options, *tests])
    if code == pytest.ExitCode.TESTS_FAILED:
        return None
    if code == pytest.ExitCode.OK:
        return f"it survived {', '.join(mutant.tests)}"
    return f"its tests did not run (pytest's exit code is {code})"


def _in_a_process(mutant: Mutant, answer: Connection) -> None:
    """Be the forked process of one mutant: torch and transformers are imported, hf_layerdrop is not."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.txt")
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        problem = verdict(mutant, Path(folder).resolve())
        answer.send(f"{problem}\n{log.read_text()[-800:]}" if problem else None)


def problems_of(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str | None]]:
    """Try the mutants, a few at once, each in a process of its own; yield each with what is wrong with it."""
    waiting, running = list(mutants), {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            mutant = waiting.pop(0)
            receiver, sender = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_in_a_process, args=(mutant, sender))
            process.start()
            sender.close()
            running[receiver] = (mutant, process)
        for receiver in wait(list(running)):
            mutant, process = running.pop(receiver)
            try:
                problem = receiver.recv()
            except EOFError:
                problem = "its process died without a verdict"
            process.join()
            yield mutant, problem


def main(words: list[str]) -> int:
    """Try the mutants and return the exit code: 0 if tests caught every one."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print(f"No mutant's name holds {' or '.join(words)}.")
        return 2
    start = time.monotonic()
    survived = 0
    for mutant, problem in problems_of(chosen):
        survived += problem is not None
        print(
            f"{'NOT CAUGHT' if problem else 'caught':10} {mutant.name}{f': {problem}' if problem else ''}", flush=True
        )
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught in {time.monotonic() - start:.0f} seconds.")
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
