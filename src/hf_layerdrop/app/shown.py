"""What the page shows for some texts and a depth, as HTML; what goes wrong is one sentence in the answer's place."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hf_layerdrop.app import drawing
from hf_layerdrop.app.model import AppModel
from hf_layerdrop.errors import LayerDropError, said_by

BY_DEPTH = -1  # in the list of recommended sets: none of them
logger = logging.getLogger(__name__)


def answer_as_html(
    app: AppModel, texts: Sequence[str], choice: int, depths: Mapping[str, int], new_tokens: int
) -> list[str]:
    """Return answer, layers, cost and table as HTML.

    Args:
        app: The model.
        texts: What it reads.
        choice: The number of a recommended set, or `BY_DEPTH`.
        depths: How many evenly spread layers of each stack to keep, where no set was chosen.
        new_tokens: Most tokens of a generated text.
    """
    keep_layers = dict(depths) if choice == BY_DEPTH else app.measured.results[choice].keep_layers
    try:
        answer = app.answer(texts, keep_layers, new_tokens)
    except LayerDropError as error:
        said = str(error)
    except Exception as error:  # of the model or its tokenizer: whoever started the page finds all of it in its log
        logger.warning("The model failed.", exc_info=True)
        said = f"The model cannot answer this ({said_by(error)[:500]}): try another text or other layers."
    else:
        return [
            drawing.draw_answer(answer),
            drawing.draw_layers(answer.kept, app.depths),
            drawing.draw_cost(answer, app.parameters),
            drawing.draw_measured(app.measured, answer.kept),
        ]
    return [drawing.draw_error(said), "", "", drawing.draw_measured(app.measured, {})]
