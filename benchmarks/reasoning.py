"""Many right steps in a row after a cut: chains of arithmetic, written out step by step by a small language model.

``4+9-2+5=`` is to be continued by ``4+9=3;3-2=1;1+5=6.``, all modulo ten: each step needs the result before it and the
next number of the question. A Llama-shaped model of 6 layers is trained on chains of two to five steps: standard, with
LayerDrop, or with a list of depths, all with the layer forwards of ``steps`` steps of the whole model. Then it is cut
(evenly spread, no finetuning), and measured on chains of three and five steps, and of seven, a length that was held
out: the share of single steps that are right behind a right beginning, and the share of chains that it writes to the
right end on its own. Arms, seeds, depths and lengths are fixed before a run; ``journal`` keeps each training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks._journal import Journal, mean_and_sd, shown
from benchmarks._mini_lm import train_on

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

LAYERS, DEPTHS = 6, (6, 4, 3)
SIGNS = "0123456789+-=;."
TRAINED, MEASURED = (2, 3, 4, 5), (3, 5, 7)  # steps in a chain
ARMS = {"standard": 6.0, "LayerDrop 0.2": 6 * 0.8, "list of depths": 13 / 3}  # and the layers of a step
ROWS = 32


def run(
    steps: int = 3000, seeds: str = "0,1,2", threads: int = 1, journal: str = "", short: bool = False
) -> dict[str, Any]:
    """Train, cut and measure every arm with every seed, and print both shares by depth and length."""
    import torch

    torch.set_num_threads(threads)
    rows = 256
    if short:
        steps, seeds, rows = 2, "0", 8
    kept = Journal(journal)
    runs = []
    for seed in map(int, seeds.split(",")):
        for arm in ARMS:
            measure = partial(_run, arm, seed, steps, rows)
            runs.append(kept.measured(f"{arm}, seed {seed}, {steps} steps, {rows} rows", measure))
    table = {arm: _summary([one for one in runs if one["arm"] == arm]) for arm in ARMS}
    _print(table, len(seeds.split(",")))
    return {"steps": steps, "seeds": seeds, "rows": rows, "short": short, "arms": table, "runs": runs}


def _run(arm: str, seed: int, steps: int, rows: int) -> dict[str, Any]:
    found = {"arm": arm, "seed": seed, **_measured(_trained(arm, seed, steps), rows)}
    print(f"{arm}, seed {seed}: measured", flush=True)
    return found


def chains(rows: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw questions and their answers, as numbers of `SIGNS`, of ``length`` steps each."""
    import torch

    numbers = torch.randint(0, 10, (rows, length + 1), generator=generator)
    minus = torch.randint(0, 2, (rows, length), generator=generator)
    plus_sign, minus_sign, equals, semicolon, stop = (SIGNS.index(sign) for sign in "+-=;.")
    signs = torch.where(minus.bool(), minus_sign, plus_sign)
    question = [numbers[:, :1]]
    answer, result = [], numbers[:, 0]
    for step in range(length):
        sign, number = signs[:, step], numbers[:, step + 1]
        question += [torch.stack([sign, number], 1)]
        total = torch.where(minus[:, step].bool(), result - number, result + number) % 10
        end = torch.full_like(total, stop if step == length - 1 else semicolon)
        answer += [torch.stack([result, sign, number, torch.full_like(total, equals), total, end], 1)]
        result = total
    return torch.cat([*question, torch.full((rows, 1), equals)], 1), torch.cat(answer, 1)


def _trained(arm: str, seed: int, steps: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_layerdrop import LayerDropConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SIGNS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    rate = {"standard": 0.0, "LayerDrop 0.2": 0.2}.get(arm)
    layerdrop = LayerDropConfig.for_depths(DEPTHS, seed=seed) if rate is None else LayerDropConfig(rate, seed=seed)
    return train_on(LlamaForCausalLM(config), layerdrop, _batches(seed), round(LAYERS * steps / ARMS[arm]))


def _batches(seed: int) -> Iterator[Mapping[str, torch.Tensor]]:
    """Draw batches of one length each; the loss is that of the answers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        length = TRAINED[int(torch.randint(len(TRAINED), (), generator=generator))]
        question, answer = chains(ROWS, length, generator)
        labels = torch.cat([torch.full_like(question, -100), answer], 1)
        yield {"input_ids": torch.cat([question, answer], 1), "labels": labels}


def _measured(model: LlamaForCausalLM, rows: int) -> dict[str, Any]:
    import torch

    from hf_layerdrop import sub_network

    found: dict[str, Any] = {"steps_right": {}, "chains_right": {}}
    for depth in DEPTHS:
        with sub_network(model, depth), torch.no_grad():
            for length in MEASURED:
                question, answer = chains(rows, length, torch.Generator().manual_seed(1234 + length))
                key = f"{depth}/{length}"
                found["steps_right"][key] = _steps_right(model, question, answer)
                written = model.generate(
                    question, attention_mask=torch.ones_like(question), max_new_tokens=answer.shape[1], do_sample=False
                )
                right = written[:, question.shape[1] :][:, -2:] == answer[:, -2:]  # the last result, and the full stop
                found["chains_right"][key] = right.all(1).float().mean().item()
    return found


def _steps_right(model: LlamaForCausalLM, question: torch.Tensor, answer: torch.Tensor) -> float:
    """Return the share of steps of which every sign is right, each behind a right beginning."""
    import torch

    said = model(input_ids=torch.cat([question, answer], 1)[:, :-1]).logits.argmax(-1)[:, question.shape[1] - 1 :]
    return (said == answer).reshape(len(answer), -1, 6).all(-1).float().mean().item()


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        share: {key: mean_and_sd(values) for key in runs[0][share] for values in [[one[share][key] for one in runs]]}
        for share in ("steps_right", "chains_right")
    }


def _print(table: dict[str, Any], seeds: int) -> None:
    for share, what in (("steps_right", "Single steps that are right"), ("chains_right", "Chains with the right end")):
        print(f"\n{what}, {seeds} seeds (mean, and standard deviation over the seeds)\n")
        head = " | ".join(f"{depth} layers, {length} steps" for depth in DEPTHS for length in MEASURED)
        print(f"| | {head} |\n| --- |{' ---: |' * len(DEPTHS) * len(MEASURED)}")
        for arm, shares in table.items():
            cells = (shares[share][f"{depth}/{length}"] for depth in DEPTHS for length in MEASURED)
            print(f"| {arm} | {' | '.join(map(shown, cells))} |")
