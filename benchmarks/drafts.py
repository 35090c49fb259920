"""A language model that drafts for itself: speed and acceptance by draft set and length, with LayerDrop and without.

Two byte models of one shape are trained for ``steps`` steps each, one with LayerDrop. Each generates greedily after
held-out prompts, without a draft and with drafts of the first layers, of spread ones, and of those that
`search_layers` chooses on other prompts. ``same`` counts the texts that equal those without a draft. Layer forwards a
token hold on every machine; tokens a second count the time that the process computed (``--clock wall`` for the time on
the wall), beside generation without a draft on the same prompts right before. ``journal`` keeps each draft, and the
same command goes on from it. ``short`` shows in seconds that it works, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks._journal import Journal
from benchmarks._mini_lm import loss_of, mini_lm, prompts_of, read_text, train_mini_lm
from benchmarks._rounds import CLOCKS

SIZES, LENGTHS = (2, 4), (1, 2, 4, 8)
KINDS = ("layerdrop", "standard")
BY_DEFAULT = "transformers' defaults"


def run(
    steps: int = 600,
    layers: int = 12,
    width: int = 256,
    rate: float = 0.3,
    prompts: int = 200,
    timed: int = 4,
    new_tokens: int = 48,
    data: str = "",
    seed: int = 0,
    threads: int = 1,
    clock: str = "cpu",
    journal: str = "",
    short: bool = False,
) -> dict[str, Any]:
    """Train both models, generate with every draft, and print a table for each model."""
    import torch

    torch.set_num_threads(threads)
    sizes = tuple(size for size in SIZES if size < layers)
    if short:
        steps, layers, width, prompts, timed, new_tokens, sizes = 2, 4, 64, 4, 2, 8, (2,)
    setting = (
        f"{layers} layers of {width}, {steps} steps, rate {rate}, seed {seed}, {prompts} prompts, {data or 'SST-2'}, "
        f"{new_tokens} tokens, {timed} timed, {clock} clock, {threads} threads"
    )
    kept = Journal(journal)
    runs = []
    for kind in KINDS:
        trial = Trial(kind, steps, layers, width, rate, prompts, timed, new_tokens, data, seed, clock)
        for arm, measure in trial.arms(sizes):
            runs.append(kept.measured(f"{kind}, {arm}: {setting}", partial(_noted, kind, arm, measure)))
    for kind in KINDS:
        _print(kind, [one for one in runs if one["kind"] == kind])
    return {"setting": setting, "clock": clock, "short": short, "runs": runs}


def _noted(kind: str, arm: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found = {"kind": kind, "arm": arm, **measure()}
    print(f"{kind}, {arm}: measured", flush=True)
    return found


@dataclass
class Trial:
    """One model, and what is measured with it."""

    kind: str
    steps: int
    layers: int
    width: int
    rate: float
    count: int
    timed: int
    new_tokens: int
    data: str
    seed: int
    clock: str

    def arms(self, sizes: Sequence[int]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield each draft by name with what measures it."""
        yield "none", self._without
        for size in sizes:
            yield f"first {size}", lambda size=size: self._with(f"first:{size}")
            yield f"spread {size}", lambda size=size: self._with(size)
            yield f"searched {size}", lambda size=size: self._searched(size)
        yield "searched, any depth", lambda: self._searched(None)

    @cached_property
    def model(self) -> Any:
        """The trained model."""
        model = mini_lm(self.layers, self.width, self.seed)
        layerdrop = self.rate if self.kind == "layerdrop" else 0.0
        return train_mini_lm(model, self.text[0], steps=self.steps, layerdrop=layerdrop, seed=self.seed)

    @cached_property
    def text(self) -> Any:
        """What it is trained on, and what is held out."""
        return read_text(self.data)

    @cached_property
    def prompts(self) -> tuple[list[Any], list[Any]]:
        """Those to measure on and those to search on, from the two halves of the held-out text."""
        held = self.text[1]
        middle = len(held) // 2
        return prompts_of(held[:middle], self.count), prompts_of(held[middle:], max(2, self.count // 4))

    @cached_property
    def texts(self) -> Any:
        """What the model writes without a draft."""
        from hf_layerdrop.search.drafts.texts import write_texts

        return write_texts(self.model, [prompt["input_ids"] for prompt in self.prompts[0]], self.new_tokens)

    @cached_property
    def folder(self) -> Any:
        """Where searches keep what they have scored."""
        return tempfile.TemporaryDirectory()

    def _without(self) -> dict[str, Any]:
        seconds, _ = self._generate(None, self.texts[: self.timed])
        loss = loss_of(self.model, self.text[1])
        return {
            "loss": loss,
            "tokens_per_second": self.timed * self.new_tokens / seconds,
            "different": _different(self),
        }

    def _searched(self, size: int | None) -> dict[str, Any]:
        from hf_layerdrop import search_layers

        chosen = search_layers(
            self.model,
            self.prompts[1],
            objective="accepted_tokens_per_second",
            depth=size,
            max_new_tokens=self.new_tokens,
            journal=Path(self.folder.name) / "scores.jsonl",
            progress=False,
        )
        assert chosen.draft is not None
        advice = {"num_assistant_tokens": chosen.draft.num_assistant_tokens, "predicted": chosen.test_score}
        found = {**self._with(chosen.keep_layers), **advice, "predicted_without": chosen.whole_test_score}
        if size is None:  # every prompt, with what was advised, beside the first layers of as many
            count = len(chosen.keep_layers["layers"])
            for name, kept in (("same_of_all", chosen.keep_layers), (f"same_of_all_first_{count}", f"first:{count}")):
                found[name] = self._timed(kept, advice["num_assistant_tokens"], self.texts)
        return found

    def _with(self, kept: Any) -> dict[str, Any]:
        """Measure one draft at each length; agreement is counted on all prompts, time on a few."""
        from hf_layerdrop import shared_sub_network
        from hf_layerdrop.search.drafts.rounds import rounds_by_length
        from hf_layerdrop.search.drafts.texts import agreement, batches_of

        draft = shared_sub_network(self.model, kept)
        depth = draft.config.num_hidden_layers
        batches = batches_of(self.texts, 32)
        counted = rounds_by_length(agreement(draft, batches, self.texts), self.new_tokens)
        lengths = {}
        for length in LENGTHS:
            rounds, drafted = counted[f"rounds_{length}"], counted[f"drafted_{length}"]
            layer_forwards = (rounds * self.layers + drafted * depth) / counted["tokens"]
            per_round = counted["tokens"] / rounds
            timed = self._timed(kept, length, self.texts[: self.timed])
            lengths[str(length)] = {"tokens_per_round": per_round, "layer_forwards_per_token": layer_forwards, **timed}
        lengths[BY_DEFAULT] = self._timed(kept, None, self.texts[: self.timed])
        return {"kept": str(kept), "depth": depth, "acceptance": counted["acceptance"], "lengths": lengths}

    def _timed(self, kept: Any, length: int | None, texts: Sequence[Any]) -> dict[str, Any]:
        from hf_layerdrop import shared_sub_network
        from hf_layerdrop.search.drafts.speed import update_settings

        draft = shared_sub_network(self.model, kept)
        if length is not None:
            update_settings(draft, length)
        self._generate(draft, texts[:1])
        plain, _ = self._generate(None, texts[: self.timed])
        seconds, same = self._generate(draft, texts)
        speed = len(texts) * self.new_tokens / seconds
        return {"tokens_per_second": speed, "speedup": speed * plain / (self.timed * self.new_tokens), **same}

    def _generate(self, draft: Any, texts: Sequence[Any]) -> tuple[float, dict[str, int]]:
        """Generate after each prompt; return the seconds, and how many texts are the same as without a draft."""
        import torch

        from hf_layerdrop.search.drafts.texts import generation_settings

        settings, same = generation_settings(self.model, self.new_tokens), 0
        now = CLOCKS[self.clock]
        start = now()
        for text in texts:
            tokens = text.prompt[None]
            mask = torch.ones_like(tokens)
            found = self.model.generate(tokens, attention_mask=mask, assistant_model=draft, **settings)[0]
            same += int(torch.equal(found, text.sequence))
        return now() - start, {"same": same, "of": len(texts)}


def _different(trial: Trial) -> int:
    """Count the different texts: a model that always writes the same would be easy to draft for."""
    return len({tuple(text.sequence[text.start :].tolist()) for text in trial.texts})


def _print(kind: str, runs: Sequence[Mapping[str, Any]]) -> None:
    none = runs[0]
    print(f"\n{kind}: loss {none['loss']:.3f} nats a byte, {none['tokens_per_second']:.0f} tokens a second without\n")
    print("Of each length: times the speed without a draft / layer forwards a token\n")
    print(f"| draft | acceptance | {' | '.join(map(str, LENGTHS))} |")
    print(f"| --- |{' ---: |' * (1 + len(LENGTHS))}")
    for one in runs[1:]:
        cells = [
            f"{found['speedup']:.2f} / {found['layer_forwards_per_token']:.1f}"
            for found in (one["lengths"][str(length)] for length in LENGTHS)
        ]
        print(f"| {one['arm']} | {one['acceptance']:.2f} | {' | '.join(cells)} |")
    for name, found in ((name, value) for one in runs for name, value in one.items() if name.startswith("same_of")):
        print(f"{name}: {found['same']} of {found['of']} texts, {found['speedup']:.2f} times the speed")
