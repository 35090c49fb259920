"""Tables that have no set in common: nothing tells whether they are of the same weights."""

from tables import table_for


def test_sets_of_weights_that_may_be_others_are_not_mixed_in():
    earlier = table_for(scores={(0, 1, 2, 3): 0.96, (0, 3): 0.95})
    now = table_for(scores={(1, 2): 0.4})
    assert now.joined(earlier) == now
