"""Independent tools cut the same layers out of the same checkpoint, and come to the same tensors.

mergekit (passthrough slices) copies tensors from file to file by lists of its own of each architecture's weight names;
optipfair takes layers out of a model in memory. Neither knows of this package.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from conftest import assert_same_tensors, build
from hf_layerdrop import load_checkpoint, prune_layers, save_pruned
from integrations import needed

KEPT, OTHERS = [0, 2, 3], [0, 1, 3]
SHAPE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
GROUPED = {**SHAPE, "num_key_value_heads": 1, "pad_token_id": 0}
DECODERS = {
    "GPT2LMHeadModel": {"vocab_size": 60, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 40},
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "Qwen2ForCausalLM": {**GROUPED, "tie_word_embeddings": True},
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 8},
    "Gemma2ForCausalLM": {**GROUPED, "head_dim": 8},
    "Phi3ForCausalLM": GROUPED,
    "CohereForCausalLM": {**GROUPED, "use_qk_norm": True},
    "StableLmForCausalLM": GROUPED,
    "Starcoder2ForCausalLM": GROUPED,
    "Olmo2ForCausalLM": GROUPED,
}
ENCODERS = ["BertForSequenceClassification", "RobertaForMaskedLM", "RobertaForSequenceClassification"]
BOTH = {
    "T5ForConditionalGeneration": {
        **{"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2},
        "feed_forward_proj": "gated-gelu",
    }
}


def built(head):
    """Build a tiny model whose tensors all differ from one another and from what a new model has."""
    if head in ENCODERS:
        return build(head)
    model_class = getattr(transformers, head)
    model = model_class(model_class.config_class(**DECODERS.get(head) or BOTH[head]))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def weights_in(folder):
    """Read every tensor of a checkpoint, by name."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return dict(sorted(tensors.items()))


def kept_by_mergekit(source, folder, stacks):
    """Have mergekit write the kept layers of each stack; an only one has no name."""
    needed("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    slices = {"slices": [{"sources": [{"model": str(source), "layer_range": [i, i + 1]}]} for i in KEPT]}
    parts = {"modules": dict.fromkeys(stacks, slices)} if stacks else slices
    plan = MergeConfiguration.model_validate({**parts, "merge_method": "passthrough", "dtype": "float32"})
    with suppress(
        StrictDataclassError
    ):  # mergekit 0.1.5 writes the weights, then leaves `layer_types` as long as it was
        run_merge(plan, str(folder), MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))
    lost = {"shared.weight"} & weights_in(source).keys()  # it leaves out T5's embedding, which is all that may differ
    return dict(sorted({**{name: weights_in(source)[name] for name in lost}, **weights_in(folder)}.items()))


@pytest.mark.parametrize("shard", ["1MB", "6KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("head", [*ENCODERS, *DECODERS, *BOTH])
def test_mergekit_writes_the_same_tensors(head, shard, tmp_path):
    stacks = ("encoder", "decoder") if head in BOTH else ()
    kept, others = (dict.fromkeys(stacks, layers) if stacks else layers for layers in (KEPT, OTHERS))
    source = tmp_path / "whole"
    built(head).save_pretrained(source, max_shard_size=shard)
    theirs = kept_by_mergekit(source, tmp_path / "theirs", stacks)

    whole = load_checkpoint(source)
    prune_layers(whole, kept)
    whole.save_pretrained(tmp_path / "cut in memory")
    load_checkpoint(source, keep_layers=kept).save_pretrained(tmp_path / "loaded")
    save_pruned(source, tmp_path / "streamed", keep_layers=kept, tokenizer=False)
    save_pruned(source, tmp_path / "others", keep_layers=others, tokenizer=False)
    for way in ("cut in memory", "loaded", "streamed"):
        assert_same_tensors(weights_in(tmp_path / way), theirs)
    other = weights_in(tmp_path / "others")
    assert other.keys() == theirs.keys()
    assert any(not torch.equal(value, other[name]) for name, value in theirs.items())


@pytest.mark.parametrize("head", DECODERS)
def test_optipfair_leaves_the_same_tensors(head, tmp_path):
    optipfair = needed("optipfair")
    model = built(head)
    model.save_pretrained(tmp_path)
    removed = [layer for layer in range(4) if layer not in KEPT]
    theirs = optipfair.prune_model(model=model, pruning_type="DEPTH", layer_indices=removed, show_progress=False)
    assert len(theirs.state_dict()) < len(built(head).state_dict())
    assert_same_tensors(theirs.state_dict(), load_checkpoint(tmp_path, keep_layers=KEPT).state_dict())
