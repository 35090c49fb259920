"""Answers as HTML: what colour says stands in words, too; all that a model or a checkpoint says is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hf_layerdrop.app.measured import Measured
from hf_layerdrop.app.model import Answer
from hf_layerdrop.results.table import format_kept, format_parameters, render_html

STYLE = """
.gradio-container { --ld-quiet: #565d6b; --ld-kept: #0b57c2; --ld-on-kept: #fff; --ld-error: #b3261e; }
.dark .gradio-container, .gradio-container.dark { --ld-quiet: #a5adbb; --ld-kept: #7fb4ff; --ld-on-kept: #0d1626;
  --ld-error: #ff8a80; }
.ld-quiet { color: var(--ld-quiet); font-size: .9rem; margin: 6px 0 0; overflow-wrap: anywhere; }
.ld-quiet b { color: var(--body-text-color); }
.ld-layers { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; margin: 2px 0 8px; }
.ld-layers b { flex: 0 0 100%; font-weight: 600; }
.ld-layers i { min-width: 28px; height: 28px; padding: 0 4px; border: 1px dashed var(--ld-quiet); border-radius: 5px;
  color: var(--ld-quiet); font: .8rem/26px system-ui, sans-serif; text-align: center; }
.ld-layers i.kept { background: var(--ld-kept); border: 1px solid var(--ld-kept); color: var(--ld-on-kept);
  font-weight: 700; }
.ld-rows { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 12px; margin: 0; }
.ld-rows dt { overflow-wrap: anywhere; }
.ld-rows dd { margin: 0; font-variant-numeric: tabular-nums; }
.ld-rows span { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--border-color-primary);
  margin-bottom: 8px; }
.ld-rows span i { display: block; height: 100%; border-radius: 3px; background: var(--ld-kept); }
.ld-text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.ld-cost { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 0; }
.ld-cost dt { color: var(--ld-quiet); font-size: .85rem; }
.ld-cost dd { margin: 0; font-size: 1.2rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.ld-cost dd small { display: block; font-size: .8rem; font-weight: 400; }
.ld-error { border: 1px solid var(--ld-error); border-left-width: 5px; border-radius: 6px; padding: 10px 12px;
  margin: 0; overflow-wrap: anywhere; }
.ld-table { overflow-x: auto; margin-top: 8px; }
.ld-table table { border: 0 !important; border-collapse: collapse; width: 100%; margin: 0; }
.ld-table th, .ld-table td { text-align: right !important; padding: 4px 10px !important; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  font-variant-numeric: tabular-nums; }
.ld-table tr { border: 0 !important; }
.ld-table th { font-weight: 500; color: var(--ld-quiet); }
.ld-table th:nth-child(2), .ld-table td:nth-child(2) { text-align: left !important; }
.ld-table tr[aria-current] td { font-weight: 700; background: var(--background-fill-secondary); }
.ld-table tr[aria-current] td:first-child { box-shadow: inset 4px 0 0 var(--ld-kept); }
@media (max-width: 560px) { /* their number is above, and the score has to be seen */
  .ld-table th:nth-child(3), .ld-table td:nth-child(3) { display: none; }
  .ld-table th, .ld-table td { padding: 5px 6px !important; font-size: .85rem; }
}
"""


def draw_title(title: str, name: str) -> str:
    """Say what is shown, and of which model."""
    said = "one model in memory, cut in place; at each depth it answers as the pruned checkpoint would"
    return f'<h1>{escape(title)} at any depth</h1><p class="ld-quiet"><b>{escape(name)}</b>: {said}.</p>'


def draw_answer(answer: Answer) -> str:
    """Draw what a model answers: a text, or rows with their scores."""
    found = answer.found
    if found.text is not None:
        text = escape(found.text) or "(nothing: the first token ends the text)"
        return f'<p class="ld-text" role="status">{text}</p>'
    rows = "".join(_row(text, score, bar=found.shares) for text, score in found.rows)
    return f'<div role="status"><dl class="ld-rows">{rows}</dl></div>'


def _row(text: str, score: float, *, bar: bool) -> str:
    width = 100 * min(max(score, 0.0), 1.0)
    drawn = f'<span aria-hidden="true"><i style="width:{width:.1f}%"></i></span>' if bar else ""
    return f"<dt>{escape(text) or '(nothing)'}</dt><dd>{score:.3f}</dd>{drawn}"


def draw_layers(kept: Mapping[str, Sequence[int]], depths: Mapping[str, int]) -> str:
    """Draw each stack as a row of boxes, the kept layers filled; a screen reader hears one sentence for a stack."""
    return "".join(_stack(name, kept[name], depth) for name, depth in depths.items())


def _stack(name: str, kept: Sequence[int], depth: int) -> str:
    said = f"{name}: {len(kept)} of {depth} layers run"
    boxes = "".join(f"<i{' class=kept' if layer in kept else ''}>{layer}</i>" for layer in range(depth))
    label = escape(f"{said}: {format_kept({name: kept})}", quote=True)
    return f'<div class="ld-layers" role="img" aria-label="{label}"><b>{escape(said)}</b>{boxes}</div>'


def draw_cost(answer: Answer, parameters: int) -> str:
    """Draw what the answer cost, beside what the whole model costs."""
    tokens = f"{answer.tokens} {'token' if answer.tokens == 1 else 'tokens'}"
    share = f"{answer.parameters / parameters:.0%} of {format_parameters(parameters)}"
    facts = {
        f"a forward, {tokens}": (f"{answer.milliseconds:.1f} ms", f"whole model {answer.whole_milliseconds:.1f} ms"),
        "speed-up": (f"{answer.whole_milliseconds / answer.milliseconds:.2f}x", "measured just now"),
        "parameters": (format_parameters(answer.parameters), share),
    }
    if new := answer.found.new_tokens:
        facts["written"] = (f"{new / answer.seconds:.1f} tokens/s", f"{new} in {answer.seconds:.2f} s")
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{fact}<small>{more}</small></dd></div>" for name, (fact, more) in facts.items()
    )
    return f'<dl class="ld-cost">{rows}</dl>'


def draw_measured(measured: Measured, kept: Mapping[str, Sequence[int]]) -> str:
    """Draw the table of what was measured before, the shown sub-network marked."""
    if not measured.results:
        why = measured.note or "No depths of this model were measured: hf-layerdrop sweep MODEL writes the table."
        return f'<h2>Quality against depth</h2><p class="ld-quiet">{escape(why)}</p>'
    table = render_html(measured.results, marked=measured.row_of(kept))
    region = f'<div class="ld-table" tabindex="0" role="region" aria-label="Quality against depth">{table}</div>'
    return f"<h2>Quality against depth</h2>{region}"


def draw_error(sentence: str) -> str:
    """Draw a sentence that says what is wrong."""
    return f'<p class="ld-error" role="alert">{escape(sentence)}</p>'
