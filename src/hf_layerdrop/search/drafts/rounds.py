"""How many rounds assisted generation takes: counted from where a draft agrees, without running it.

In greedy assisted generation a draft is asked for ``k`` tokens, and one forward of the whole model takes those up to
the first that it would not have chosen, and adds one of its own. A token is only taken after tokens that are the whole
model's, so whether it is taken depends on one thing: what the draft says next after the whole model's own text. Where
it agrees there gives every round of every ``k``.

If each token agreed with chance ``a``, whatever stood before it, a round would give ``(1 - a^(k+1)) / (1 - a)`` tokens
(Leviathan et al., arXiv 2211.17192, equation 1). Text is not like that: agreement comes in runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DRAFT_TOKENS = range(1, 17)  # the lengths of a draft that are compared


def count_rounds(agrees: Sequence[bool], draft_tokens: int, limit: int) -> tuple[int, int]:
    """Return the forwards of the whole model, and the tokens that are drafted for them.

    Args:
        agrees: For each token of the whole model's text, whether the draft says the same after those before it.
        draft_tokens: How many tokens a round asks of the draft.
        limit: The most tokens that may be generated; a text that ends earlier has met its end-of-text token.
    """
    return _count(_runs(agrees), draft_tokens, limit)


def rounds_by_length(texts: Sequence[Sequence[bool]], limit: int) -> Mapping[str, float]:
    """Return ``acceptance`` (the share of tokens that agree), ``tokens``, and ``rounds_k``, ``drafted_k`` by length."""
    tokens = sum(map(len, texts))
    found: dict[str, float] = {"acceptance": sum(map(sum, texts)) / max(1, tokens), "tokens": tokens}
    runs = [_runs(agrees) for agrees in texts]
    for length in DRAFT_TOKENS:
        counts = [_count(of_text, length, limit) for of_text in runs]
        found[f"rounds_{length}"], found[f"drafted_{length}"] = map(sum, zip(*counts, strict=True))
    return found


def _runs(agrees: Sequence[bool]) -> list[int]:
    """Return at each token how many agree from there on."""
    runs, run = [], 0
    for agreed in reversed(agrees):
        run = run + 1 if agreed else 0
        runs.append(run)
    return runs[::-1]


def _count(runs: Sequence[int], draft_tokens: int, limit: int) -> tuple[int, int]:
    place = rounds = drafted = 0
    while place < len(runs):
        asked = min(draft_tokens, limit - place - 1)  # the last token of all is never drafted
        rounds, drafted = rounds + 1, drafted + asked
        place += min(runs[place], asked) + 1
    return rounds, drafted
