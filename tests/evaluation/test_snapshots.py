"""What a layer was given is held as it was, also where it was written into after it was found equal to another."""

import torch

from hf_layerdrop.evaluation.unchanged import Comparison, Doubts


def test_a_tensor_that_was_written_into_is_not_taken_for_what_it_was():
    comparison, held, new = Comparison(Doubts()), torch.ones(3), torch.ones(3)
    assert comparison.same(new, held)
    assert comparison.snapshot(new) is held
    new += 1
    assert comparison.snapshot(new) is new
