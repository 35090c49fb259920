"""Where a map can be merged, and what is said where it cannot."""

import copy

import pytest
import torch
import transformers

from conftest import assert_same_tensors
from hf_layerdrop import merge_linear_maps, student_of
from hf_layerdrop.errors import HealingError
from hf_layerdrop.healing.least_squares import NormalEquations

SHAPE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "pad_token_id": 1}
LLAMA = {**SHAPE, "intermediate_size": 24, "num_key_value_heads": 2, "initializer_range": 0.3}


def model_of(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**more)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def batches(count=12):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(5, 60, (8, 9), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("OPT", {**SHAPE, "ffn_dim": 24, "init_std": 0.3, "word_embed_proj_dim": 16}),  # flattens its feed-forward part
        ("GPTNeoX", {**SHAPE, "intermediate_size": 24, "initializer_range": 0.3}),  # attention and feed-forward abreast
        ("Qwen3", {**LLAMA, "head_dim": 8}),
    ],
)
def test_predictions_come_nearer_to_those_of_the_whole_model(family, fields):
    whole = model_of(family, **fields)
    cut = student_of(whole, (0, 3))
    rows = batches()
    with torch.no_grad():
        wanted, plain = whole(**rows[0]).logits, cut(**rows[0]).logits
        merge_linear_maps(cut, whole, rows, ridge=1e-2)
        healed = cut(**rows[0]).logits
    assert (healed - wanted).square().mean() < 0.85 * (plain - wanted).square().mean()


@pytest.mark.parametrize(
    ("family", "fields"),
    [("Gemma2", {**LLAMA, "head_dim": 8}), ("Granite", {**LLAMA, "residual_multiplier": 0.5})],
)
def test_blocks_that_scale_or_normalize_are_refused_in_one_sentence(family, fields):
    whole = model_of(family, **fields)
    with pytest.raises(HealingError, match=f"{family}ForCausalLM takes no map.*lora, whole, distill") as caught:
        merge_linear_maps(student_of(whole, (0, 3)), whole, batches(1))
    assert len(str(caught.value).splitlines()) == 1


def test_rows_of_padding_alone_are_refused():
    whole = model_of("Llama", **LLAMA)
    cut = student_of(whole, (0, 3))
    before = copy.deepcopy(cut.state_dict())
    padding = {"input_ids": torch.full((2, 4), 1), "attention_mask": torch.zeros((2, 4), dtype=torch.long)}
    with pytest.raises(HealingError, match="padding alone"):
        merge_linear_maps(cut, whole, [padding])
    assert_same_tensors(cut.state_dict(), before)


def test_where_nothing_is_missing_all_of_it_is_explained():
    equations = NormalEquations(4, shifts=False, device=torch.device("cpu"))
    equations.add(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(9, 4))
    assert equations.explained(*equations.solve(0.1)) == 1.0
