# ruff: noqa: T201 - a script
"""Plant no-ops in a copy of the package, one at a time: each must turn tests red.

``python tests/mutants.py [WORD ...]`` tries all mutants, or those whose name holds one of the words. A test suite that
stays green when the draw, the skip or the renumbering does nothing would not notice if they broke.
"""

from __future__ import annotations

import gc
import importlib
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

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("hf_layerdrop")
SECONDS = 240
# Plugins of pytest that take long to import, or write beside the tests.
UNUSED = ("anyio", "cacheprovider", "hypothesispytest", "nbmake", "warnings")
# Imported once, for the processes of all mutants to inherit: with it a mutant costs a quarter of the time. None of
# these may import the package itself, of which each process has a copy of its own.
INHERITED = (
    "accelerate",
    "datasets",
    "hypothesis",
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bart.modeling_bart",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.t5.modeling_t5",
    "transformers.pipelines",
    "transformers.trainer",
)
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
        "a cache that is too short stays on in place",
        "pruning.py",
        "settle_cache(self._model, self.stacks, quiet=True)",
        "pass",
        ("test_generation_cache.py::test_in_place_it_generates_too_and_has_its_cache_back_afterwards",),
    ),
    Mutant(
        "a cache that is too short stays on after loading",
        "loading.py",
        "settle_cache(model, stacks)",
        "pass",
        ("test_generation_cache.py::test_it_is_said",),
    ),
    Mutant(
        "a refused weight is named by its place in the cut model",
        "cuts.py",
        "return self.names.renumbered(weight, new[0], new[1], old[1]) if new and old else weight",
        "return weight",
        ("test_bad_input.py::test_shards_that_do_not_fit_are_refused",),
    ),
    Mutant(
        "a beam swaps no layers",
        "selection/beam.py",
        "distinct([*candidates, *space.with_one_swapped(best)])",
        "distinct([*candidates])",
        ("test_selection.py::test_each_round_of_swaps_brings_the_best_single_layer_back",),
    ),
    Mutant(
        "a search tries sets that cannot be cut",
        "selection/space.py",
        "return self.can_cut is None or self.can_cut(kept)",
        "return True",
        ("test_selection.py::test_only_sets_that_plain_transformers_can_rebuild_are_tried[3-beam]",),
    ),
    Mutant(
        "the heaviest layers are taken though they cannot be cut",
        "selection/space.py",
        "if self.is_possible(top):",
        "if True:",
        ("test_selection.py::test_the_heaviest_set_is_that_of_all_that_can_be_cut[1000]",),
    ),
    Mutant(
        "sets are built up by lightest ends",
        "selection/space.py",
        "(weight - weights[layer], (*kept, layer))",
        "(weight + weights[layer], (*kept, layer))",
        ("test_selection.py::test_the_heaviest_set_is_that_of_all_that_can_be_cut[0]",),
    ),
    Mutant(
        "a depth of which nothing can be cut is found out after scoring",
        "selection/search.py",
        "if space.some_set() is None:",
        "if False:",
        (
            "test_selection.py::test_a_depth_of_which_nothing_can_be_cut_is_refused_with_the_reason_before_anything_is_scored[beam]",
        ),
    ),
    Mutant(
        "the set of a rule is not looked at before scoring",
        "selection/search.py",
        "if kept is None or space.is_possible(kept):",
        "if True:",
        (
            "test_selection.py::test_a_rule_whose_set_cannot_be_cut_is_refused_with_the_reason_before_anything_is_scored",
        ),
    ),
    Mutant(
        "what cannot be cut counts among the sets of a depth",
        "selection/scoring.py",
        "= len(possible)",
        "= space.count()",
        ("test_selection.py::test_the_share_of_sets_as_good_counts_only_what_can_be_cut",),
    ),
    Mutant(
        "layers are left out that the model cannot be cut without",
        "selection/leave_one_out.py",
        "if problem.space.is_possible(entry[2])",
        "if entry",
        ("test_selection.py::test_only_sets_that_plain_transformers_can_rebuild_are_tried[3-leave_one_out]",),
    ),
    Mutant(
        "refused cuts are built again each time",
        "rebuilding.py",
        "        if key not in self._built:",
        "        if True:",
        ("test_selection.py::test_a_config_is_built_once_however_many_cuts_have_it",),
    ),
    Mutant(
        "the whole model stands for every cut",
        "pruning.py",
        "else len(kept[name]) < self.depths[name]",
        "else 1",
        ("test_selection.py::test_the_whole_model_stands_for_no_cut_of_it",),
    ),
    Mutant(
        "a shard that the Hub lacks is not told",
        "headers.py",
        "        if shard not in files:",
        "        if False:",
        ("test_bad_hub.py::test_shards_that_do_not_fit_are_refused[name_a_shard_that_is_not_there]",),
    ),
    Mutant(
        "the draw always keeps all",
        "draws.py",
        "tuple(map(ge, numbers, rates))",
        "tuple(True for _ in rates)",
        ("test_injection.py::test_a_sequence_of_draws_has_the_rate_it_was_asked_for",),
    ),
    Mutant(
        "rates are ignored by the draw",
        "draws.py",
        "tuple(map(ge, numbers, rates))",
        "tuple(number >= 0.5 for number in numbers)",
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
        "stack_draws.py",
        "if self._active and owner.training and",
        "if self._active and",
        ("test_injection.py::test_rate_0_and_eval_are_bit_equal_to_the_untouched_model",),
    ),
    Mutant(
        "a run goes on with a checkpoint of another depth",
        "step_callback.py",
        "    if saved != depths:",
        "    if saved != depths and False:",
        ("test_disagreement.py::test_a_checkpoint_of_another_depth_is_refused_also_where_it_holds_no_optimizer",),
    ),
    Mutant(
        "wrapped layers are not named",
        "wrappers.py",
        "        _refuse_wrapped_layers(module)\n",
        "",
        ("test_disagreement.py::test_what_was_wrapped_before_is_refused_with_the_wrapper_s_name",),
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
        '    restore_native(model, originals["native"])\n',
        "",
        ("test_injection.py::test_native_layerdrop_is_never_applied_on_top_of_ours",),
    ),
    Mutant(
        "forwards that a backward pass repeats are not counted",
        "stack_draws.py",
        "        self._repeats = True\n",
        "",
        ("test_recomputation.py::test_forwards_without_gradient_are_repeated_with_the_same_layers_and_count_once",),
    ),
    Mutant(
        "the configs of adapters are not cut along",
        "pruning.py",
        "        _assign(adapter, fields)\n",
        "        pass\n",
        ("test_integration_peft.py::test_base_and_adapter_are_pruned_together",),
    ),
    Mutant(
        "models that share a config write their rates over each other",
        "injection.py",
        "                module.config = copies[id(module.config)]",
        "                pass",
        ("test_injection.py::test_two_models_built_from_one_config_object_each_keep_and_save_their_own_rates",),
    ),
    Mutant(
        "an encoder drops beside a decoder that continues a cache",
        "stack_draws.py",
        "if self._has_sibling else inputs",
        "if False else inputs",
        ("test_injection.py::test_an_encoder_drops_nothing_beside_a_decoder_that_continues_a_cache",),
    ),
    Mutant(
        "gradients of dropped layers are left in ZeRO-3's buffer",
        "zero3.py",
        "            optimizer.set_local_grad_for_param(torch.zeros_like(partition), weight)",
        "            pass",
        ("test_zero3.py::test_gradients_are_cleared_in_the_first_micro_step_alone",),
    ),
    Mutant(
        "a recomputation draws again",
        "stack_draws.py",
        "            return self._remembered() or self._repeated(owner)",
        "            return self.draw()",
        ("test_recomputation.py::test_gradients_equal_those_without_checkpointing",),
    ),
    Mutant(
        "a recomputed layer forgets that it was dropped",
        "stack_draws.py",
        "            record._layerdrop_dropped = (id(self), layer)",
        "            pass",
        ("test_recomputation.py::test_a_dropped_layer_is_not_run_by_a_recomputation_either",),
    ),
    Mutant(
        "forwards without gradient advance the count",
        "stack_draws.py",
        "        if counts or recorded:",
        "        if True:",
        ("test_injection.py::test_forwards_without_gradient_and_evaluations_do_not_advance_the_count",),
    ),
    Mutant(
        "a restored state does not continue the count",
        "state.py",
        "            draw.go_to(*state[",
        "            _ = (state[",
        ("test_injection.py::test_a_saved_state_continues_the_draws_in_another_process_and_model",),
    ),
    Mutant(
        "Trainer's steps are not followed",
        "step_callback.py",
        "begin_step(state.global_step)",
        "begin_step(0)",
        ("test_injection.py::test_trainer_counts_steps_and_micro_steps_and_keeps_a_seed_that_was_given",),
    ),
    Mutant(
        "generate drops layers",
        "stack_draws.py",
        "if recomputation.inside_generate():",
        "if False:",
        ("test_injection.py::test_generate_in_train_mode_drops_nothing_and_draws_nothing",),
    ),
    Mutant(
        "a forward that continues a cache drops layers",
        "stack_draws.py",
        "if any(holds_tokens(value) for value in given):",
        "if False:",
        ("test_injection.py::test_a_forward_that_continues_a_cache_drops_nothing",),
    ),
    Mutant(
        "layer indices are not renumbered",
        "pruning.py",
        "{place.field: place.at(new)}",
        "{place.field: place.at(place.layer)}",
        ("test_pruning.py::test_cached_generation_in_place_equals_the_pruned_and_reloaded_model",),
    ),
    Mutant(
        "the bias of T5's first block is not lent in training",
        "bias.py",
        "            borrower.__dict__.update(attributes)",
        "            pass",
        ("test_families.py::test_the_bias_of_the_first_block_is_trained_when_it_is_dropped_and_nothing_else_of_it",),
    ),
    Mutant(
        "the bias of T5's first block is not moved by a cut",
        "pruning.py",
        "{**heir._modules, **modules}",
        "heir._modules",
        ("test_families.py::test_a_cut_moves_the_bias_to_the_first_block_that_is_kept",),
    ),
    Mutant(
        "the bias of T5's first block is not loaded with other layers",
        "weight_names.py",
        "elif layer == 0 and _is_for_all(rest, stacks[name]):",
        "elif False:",
        ("test_families.py::test_a_cut_moves_the_bias_to_the_first_block_that_is_kept",),
    ),
    Mutant(
        "a cut that would be rebuilt otherwise is not refused",
        "rebuilding.py",
        "            if difference:",
        "            if False:",
        (
            "test_families.py::test_a_cut_that_plain_transformers_would_build_otherwise_is_refused_before_anything_is_written",
        ),
    ),
    Mutant(
        "lists with one entry a layer are not cut along",
        "families.py",
        "cut[field] = type(value)(value[layer] for layer in kept)",
        "pass",
        ("test_families.py::test_fields_that_speak_of_layers_are_cut_along",),
    ),
    Mutant(
        "a dropped layer hands on nothing beside its hidden states",
        "handing.py",
        "(hidden_states, *(given.arguments.get(name) for name in parts))",
        "(hidden_states, *(None for name in parts))",
        ("test_families.py::test_a_dropped_layer_hands_on_its_input_in_the_form_that_it_returns",),
    ),
    Mutant(
        "the config's depth is not cut",
        "pruning.py",
        "kept), stack.depth_field: len(kept)}",
        "kept)}",
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
        "stack_draws.py",
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
        "weight_names.py",
        "names.renumbered(weight, name, layer, kept[name].index(layer)), value",
        "weight, value",
        ("test_loading.py::test_keep_layers_at_load_gives_the_tensors_of_load_and_cut",),
    ),
    Mutant(
        "the first layers are loaded in place of the kept ones",
        "weight_names.py",
        "yield names.renumbered(weight, name, layer, kept[name].index(layer)), value",
        "new = names.renumbered(weight, name, layer, kept[name].index(layer))\n            yield new, weights[new]",
        ("test_loading.py::test_keep_layers_at_load_gives_the_tensors_of_load_and_cut",),
    ),
    Mutant(
        "what was looked at for one config is taken for any other of its class",
        "cuts.py",
        "key = cls, pickle.dumps(config)",
        'key = cls, b""',
        ("test_cuts.py::test_a_config_that_differs_in_anything_is_another_model",),
    ),
    Mutant(
        "a cut at load is not checked against what plain transformers would rebuild",
        "cuts.py",
        "key = tuple(kept.items())",
        "return",
        ("test_cuts.py::test_a_cut_that_is_rebuilt_otherwise_is_refused_each_time",),
    ),
    Mutant(
        "a file that changes on the Hub between two requests is taken as one",
        "http_ranges.py",
        "(size, etag) != (self._size, self._etag)",
        "False",
        ("test_downloads.py::test_a_file_that_changes_between_requests_is_refused",),
    ),
    Mutant(
        "pruning always builds the model in memory",
        "hub/save.py",
        "streamed = find_streamed(model, keep_layers, revision, load_kwargs)",
        "streamed = None",
        ("test_streaming.py::test_streaming_writes_the_same_bytes",),
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
        "(total - capped * highest) / sum(ordered[capped:])",
        "total / sum(ordered[capped:])",
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
        "masked tokens are not masked",
        "tasks/language_modelling.py",
        "        return self._mask(rows)",
        "        return self._pad([{**row, 'labels': row['input_ids']} for row in rows])",
        ("test_paper_tasks.py::test_a_model_from_a_config_learns_the_task_and_is_cut[mlm]",),
    ),
    Mutant(
        "a causal model is not asked for later tokens",
        "tasks/language_modelling.py",
        "logits, labels = logits[:, :-1], labels[:, 1:]",
        "pass",
        ("test_paper_tasks.py::test_the_perplexity_is_that_of_plain_transformers",),
    ),
    Mutant(
        "generated text is compared with another row's references",
        "tasks/sequence_to_sequence.py",
        "references=[data.examples[row] for row in evaluated.label_ids]",
        "references=[data.examples[0] for row in evaluated.label_ids]",
        ("test_paper_tasks.py::test_bleu_is_sacrebleus_of_what_plain_transformers_generates",),
    ),
    Mutant(
        "a question without an answer is answered",
        "tasks/question_answering.py",
        "may_be_none and none[question] > score",
        "False",
        ("test_text_metrics.py::test_no_answer_wins_only_where_some_question_has_none",),
    ),
    Mutant(
        "the count of layer forwards begins anew at a resume",
        "callbacks.py",
        "        if state.global_step:\n            self.layer_forwards =",
        "        if False:\n            self.layer_forwards =",
        ("test_paper_tasks.py::test_a_resumed_run_ends_like_the_one_that_went_through",),
    ),
    Mutant(
        "a recipe runs done steps again",
        "cli/recipe.py",
        "if state == DONE or dry_run:",
        "if dry_run:",
        ("test_recipe.py::test_an_interrupted_recipe_goes_on_from_the_last_checkpoint",),
    ),
    Mutant(
        "padding counts in the losses of distillation",
        "distillation/losses.py",
        "values.masked_fill(~counts, 0).sum() / counts.sum()",
        "values.sum() / torch.ones_like(counts).sum()",
        ("test_distillation.py::test_the_cosine_loss_looks_at_directions_of_real_tokens",),
    ),
    Mutant(
        "the student imitates the teacher's first layers",
        "distillation/student.py",
        "[(place, layer + 1) for",
        "[(place, place) for",
        ("test_distillation.py::test_states_are_paired_with_those_of_the_layer_they_came_from",),
    ),
    Mutant(
        "a causal student is scored at the wrong token",
        "distillation/positions.py",
        "if not shifts or labels.dim() < 2",
        "if not labels.dim() < 0",
        ("test_distillation.py::test_the_loss_is_what_one_computes_by_hand[GPT2LMHeadModel]",),
    ),
    Mutant(
        "accumulated batches all weigh the same",
        "distillation/trainer.py",
        'loss = loss * self._share(inputs.get("labels"), num_items_in_batch)',
        "loss = loss * 1.0",
        (
            "test_distillation.py::test_accumulated_batches_weigh_as_much_as_their_labels[BertForSequenceClassification]",
        ),
    ),
    Mutant(
        "a resumed distillation forgets what it took",
        "distillation/budget.py",
        "if state.global_step else (0, 0)",
        "if state.global_step < 0 else (0, 0)",
        ("test_distillation.py::test_a_resumed_run_equals_one_that_went_through_and_saves_the_student_alone",),
    ),
    Mutant(
        "a dropped sub-layer is run",
        "structure_drop.py",
        "    return mask is None or mask[index]",
        "    return True",
        (
            "test_structures.py::test_a_dropped_sub_layer_does_no_work_not_even_in_its_hooks[BertForSequenceClassification-ffn]",
        ),
    ),
    Mutant(
        "a dropped head is run",
        "structure_drop.py",
        "joined if all(kept) else _masked(joined, kept)",
        "joined",
        ("test_structures.py::test_what_is_dropped_counts_as_if_its_last_weights_were_zero[head-LlamaModel]",),
    ),
    Mutant(
        "a dropped sub-layer loses the norm after the residual",
        "structure_drop.py",
        "        return norms[0](residual) if norms else residual",
        "        return residual",
        (
            "test_structures.py::test_what_is_dropped_counts_as_if_its_last_weights_were_zero[ffn-BertForSequenceClassification]",
        ),
    ),
    Mutant(
        "a dropped attention records no None",
        "recording.py",
        "            collected[key].append(None)",
        "            pass",
        (
            "test_structures.py::test_attentions_of_dropped_ones_are_none_and_hidden_states_are_all_there[LlamaModel-attention]",
        ),
    ),
    Mutant(
        "structures of a stack draw alike",
        "stack_draws.py",
        'name if structure == "layer" else f"{name}/{structure}"',
        "name",
        ("test_structures.py::test_groups_are_drawn_apart_at_the_rate_and_those_of_a_dropped_layer_are_dropped",),
    ),
    Mutant(
        "parts of a dropped layer count as kept",
        "stack_draws.py",
        "return mask if layers is None else",
        "return mask if True else",
        ("test_structures.py::test_groups_are_drawn_apart_at_the_rate_and_those_of_a_dropped_layer_are_dropped",),
    ),
    Mutant(
        "a recomputed layer does not know the masks of its parts",
        "stack_draws.py",
        "            _parts_on(record)[id(self)] = self.mask",
        "            pass",
        ("test_structures.py::test_gradient_checkpointing_reuses_the_masks[LlamaModel-ffn-True]",),
    ),
    Mutant(
        "a structure sub-network leaves nothing out",
        "structure_networks.py",
        "draw.paused, draw.fixed = True, masks.get(name)",
        "draw.paused, draw.fixed = True, None",
        ("test_structures.py::test_a_structure_sub_network_computes_without_what_is_left_out[LlamaModel-False]",),
    ),
    Mutant(
        "an attention and a feed-forward with one norm count as a chain",
        "structures.py",
        '"(nar?)(nar?)?(nf+r?)"',
        '"(nar?)(nar?)?(n?f+r?)"',
        ("test_structures.py::test_layers_that_are_no_chain_of_sub_layers_are_refused_by_name_and_unchanged",),
    ),
    Mutant(
        "pruned heads are not written into the config",
        "head_pruning.py",
        "            setattr(model.config, field, getattr(config, field))",
        "            pass",
        ("test_structures.py::test_pruned_heads_are_gone_and_plain_transformers_computes_the_same",),
    ),
    Mutant(
        "heads are pruned though no config can say so",
        "head_pruning.py",
        "        if built != shapes.get(id(weight), [*weight.shape]):",
        "        if False:",
        ("test_structures.py::test_heads_that_no_config_can_describe_are_refused_and_nothing_is_changed",),
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
        "a compiled model is injected",
        "compiling.py",
        "if isinstance(module, OptimizedModule):",
        "if False:",
        ("test_compile.py::test_a_model_in_a_compiled_wrapper_is_refused_and_stays_as_it_was",),
    ),
    Mutant(
        "a shared sub-network copies the weights",
        "sharing.py",
        "copy.deepcopy(whole, copied)",
        "copy.deepcopy(whole)",
        ("test_sharing.py::test_it_is_the_pruned_model_on_the_weights_of_the_whole_one[gpt2]",),
    ),
    Mutant(
        "a shared sub-network is the whole model",
        "sharing.py",
        "    prune_layers(shallow, keep_layers)\n",
        "",
        ("test_sharing.py::test_it_is_the_pruned_model_on_the_weights_of_the_whole_one[gpt2]",),
    ),
    Mutant(
        "a lender is dropped like any other layer",
        "injection.py",
        "for layer in layers if rates[name][layer]",
        "for layer in () if rates[name][layer]",
        ("test_borrowing.py::test_a_lender_is_never_dropped_and_never_cut_away_alone",),
    ),
    Mutant(
        "other rates may drop a lender",
        "injection.py",
        "    _check_lenders(state.lent, state.config, {**state.rates, **changed})\n",
        "",
        ("test_borrowing.py::test_a_lender_is_never_dropped_and_never_cut_away_alone",),
    ),
    Mutant(
        "a cut keeps a borrower without its lender",
        "borrowing.py",
        "if borrower in kept and lender not in kept:",
        "if False:",
        ("test_borrowing.py::test_a_cut_keeps_borrower_and_lender_or_neither",),
    ),
    Mutant(
        "a forward past the layers' call goes unnoticed",
        "stack_draws.py",
        "if self.mask is not None and not self._heeded and not all(self.mask):",
        "if False:",
        (
            "test_borrowing.py::test_a_forward_that_runs_its_layers_past_their_call_is_an_error_and_not_a_layerdrop_"
            "without_effect",
        ),
    ),
    Mutant(
        "what single layers have otherwise stays with the old numbers",
        "families.py",
        "replace(value, per_layer_overrides=left)",
        "value",
        ("test_borrowing.py::test_what_single_layers_have_otherwise_goes_along_with_a_cut",),
    ),
    Mutant(
        "inspect looks for no layers that are unlike",
        "doctor/traps.py",
        "    for numbers in alike.values():",
        "    for numbers in ():",
        ("test_doctor.py::test_a_layer_that_is_unlike_the_others_is_named",),
    ),
    Mutant(
        "inspect knows only the depth field",
        "doctor/fields.py",
        "others = sorted(cut_fields(part, stack.depth, range(0, stack.depth, 2)))",
        "others: list[str] = []",
        ("test_doctor.py::test_the_fields_that_a_cut_is_said_to_change_are_those_it_changes[granitemoehybrid]",),
    ),
    Mutant(
        "the recording hooks that a sub-network got stay on its layers alone",
        "pruning.py",
        "            take_back_recording(self._model, recording)\n",
        "",
        ("test_evaluation.py::test_hidden_states_that_are_first_asked_for_in_a_sub_network_are_complete_afterwards",),
    ),
    Mutant(
        "a remembered layer leaves out its hidden state",
        "prefixes.py",
        " and not is_recording():",
        ":",
        ("test_evaluation.py::test_a_part_that_hands_on_an_inner_hidden_state_is_measured_as_the_pruned_model",),
    ),
    Mutant(
        "a run that is in the journal is trained again",
        "reproduce/engine.py",
        "if known is not None:",
        "if False:",
        ("test_reproduce.py::test_tables_and_figures_share_their_runs",),
    ),
    Mutant(
        "an arm that was killed begins anew",
        "reproduce/training.py",
        "trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))",
        "trainer.train()",
        ("test_reproduce.py::test_a_killed_run_goes_on_and_ends_with_the_same_numbers",),
    ),
    Mutant(
        "a claim about depth is read where depth does not pay",
        "reproduce/summary.py",
        "if unpaid:",
        "if False:",
        ("test_reproduce.py::test_the_reading_of_a_claim",),
    ),
    Mutant(
        "any gap makes a claim hold",
        "reproduce/summary.py",
        "if abs(gap) <= SPREADS * spread:",
        "if False:",
        ("test_reproduce.py::test_the_reading_of_a_claim",),
    ),
    Mutant(
        "a head that ignores the count of labels is believed",
        "accumulation.py",
        "if self._ignores:",
        "if False:",
        ("test_accumulation.py::test_four_batches_a_step_train_as_one_that_is_four_times_as_large",),
    ),
    Mutant(
        "a compiler looks into what decides on parts of a layer",
        "structure_drop.py",
        "    @outside_of_graphs\n    def _run_or_replace",
        "    def _run_or_replace",
        ("test_compiled_structures.py::test_regional_compilation_makes_no_graph_for_another_set_of_parts",),
    ),
    Mutant(
        "a run of Lightning's that goes on learns anew",
        "lightning.py",
        "if CHECKPOINT_KEY in checkpoint:",
        "if False:",
        ("test_integration_lightning.py::test_rates_are_learned_as_in_a_loop_and_a_resumed_run_goes_on_learning",),
    ),
    Mutant(
        "each stack asks the other ranks for itself",
        "stack_draws.py",
        "self._agreement = agreement or Agreement()",
        "self._agreement = Agreement()",
        ("test_agreement.py::test_whichever_stack_runs_first_says_the_same_for_all_and_once",),
    ),
    Mutant(
        "each forward looks for shards in all weights",
        "agreement.py",
        "    if samples is not None and all(",
        "    if False and all(",
        (
            "test_agreement.py::test_several_ranks_that_train_models_of_their_own_look_at_the_weights_once_and_ask_nothing",
        ),
    ),
    Mutant(
        "a model that is sharded later is not asked for",
        "agreement.py",
        'is weight and not hasattr(weight, "ds_id")',
        "is weight",
        ("test_agreement.py::test_what_comes_to_be_shared_after_its_first_forwards_is_asked_then",),
    ),
    Mutant(
        "a rank asks with the rates of before",
        "stack_draws.py",
        "self._agreement.reached = self._agreement.reached and agreed",
        "pass",
        ("test_agreement.py::test_it_is_asked_again_when_rates_or_seed_change_and_not_when_a_schedule_scales_them",),
    ),
    Mutant(
        "a masked model at rate 0 is silent",
        "masking.py",
        "if not (stack.draw.active or torch.compiler.is_compiling()):",
        "if False:",
        ("test_agreement.py::test_a_model_at_rate_0_is_asked_too_since_the_others_may_have_another_rate[mask]",),
    ),
    Mutant(
        "a damaged entry of the config is believed",
        "provenance.py",
        "if value is not None and not fits(value):",
        "if False:",
        ("test_provenance.py::test_a_damaged_entry_is_refused_by_one_sentence",),
    ),
    Mutant(
        "a kept layer that lacks a weight is made up",
        "loading.py",
        "check_layers_are_whole(_unevenly_missing(",
        "list(_unevenly_missing(",
        ("test_loading.py::test_a_kept_layer_that_lacks_a_weight_is_refused_and_never_made_up",),
    ),
    Mutant(
        "no value of a training flag is out of range",
        "cli/training_values.py",
        "if not fits(number):",
        "if False:",
        ("test_starting.py::test_a_config_file_has_the_same_ranges",),
    ),
    Mutant(
        "Trainer's empty output folder stays",
        "starting.py",
        "            folder.rmdir()",
        "            break",
        ("test_starting.py::test_from_python_too_nothing_is_left_and_the_cause_is_kept",),
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
    """Be the forked process of one mutant: what tests need is imported, hf_layerdrop is not."""
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
    for module in INHERITED:
        importlib.import_module(module)
    gc.freeze()  # no mutant searches it for garbage
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
