"""The page itself, in Gradio: it hands texts and depths to `AppModel` and shows what that returns."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from hf_layerdrop.app import drawing
from hf_layerdrop.app.model import LONGEST_TEXT, MOST_NEW_TOKENS, AppModel, load_app_model
from hf_layerdrop.app.shown import BY_DEPTH, answer_as_html
from hf_layerdrop.errors import LayerDropConfigError, require

if TYPE_CHECKING:
    import gradio
    from typing_extensions import Unpack

    from hf_layerdrop.models.arguments import FromPretrained

HOST = "127.0.0.1"
NEW_TOKENS = 40


def launch_app(
    model: str | os.PathLike[str],
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    wait: bool = True,
    **where: Unpack[FromPretrained],
) -> str:
    """Open the page of a model and return its address, once it is closed; nothing is asked of a network for it.

    Args:
        model: A checkpoint folder, or the id of a model on the Hub.
        host: The address to listen at; None is Gradio's choice: 127.0.0.1, which others do not reach, and in a Space
            the one that it needs.
        port: The port; None is Gradio's choice, 7860 or the next that is free.
        share: Whether Gradio opens a tunnel through which anyone with its address reaches this machine.
        wait: Whether to return only when the page is closed.
        **where: See `load_app_model`.

    Raises:
        MissingExtraError: Gradio is not installed.
        LayerDropConfigError: The port is in use.
        CheckpointError: See `load_app_model`.
        UnsupportedModelError: See `load_app_model`.
    """
    require("gradio")
    if port is not None:
        check_port(host or HOST, port)
    page = build_page(load_app_model(os.fspath(model), **where))
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not wait,
        ssr_mode=False,
        quiet=not wait,
        footer_links=[],
        css=drawing.STYLE,
        theme=_theme(),
    )
    return str(address)


def check_port(host: str, port: int) -> None:
    """Refuse a port that is in use, or an address that is not this machine's.

    Raises:
        LayerDropConfigError: If it is.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None) or 0
        reason = os.strerror(code) if code > 0 else error  # a name that is not known has a number of its own
        raise LayerDropConfigError(
            f"The app cannot listen at {host}:{port} ({reason}): give another by --port, such as {port % 65535 + 1}."
        ) from error


def build_page(app: AppModel) -> gradio.Blocks:
    """Build the page of a model; to be opened with ``launch``."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # some of it asks the variable alone
    import gradio

    with gradio.Blocks(title=f"{app.name} at any depth", analytics_enabled=False) as page:
        gradio.HTML(drawing.draw_title(app.head.title, app.name))
        with gradio.Row():
            with gradio.Column():
                texts = [_textbox(gradio, label, text) for label, text in zip(app.labels, app.example, strict=True)]
                choice = gradio.Dropdown(
                    [("Evenly spread, by depth", BY_DEPTH), *app.measured.choices],
                    value=BY_DEPTH,
                    label="Layers",
                    visible=bool(app.measured.choices),
                )
                with gradio.Group() as depths:
                    sliders = [
                        gradio.Slider(1, depth, value=(depth + 1) // 2, step=1, label=f"Depth of the {stack}")
                        for stack, depth in app.depths.items()
                    ]
                length = gradio.Slider(
                    1, MOST_NEW_TOKENS, NEW_TOKENS, step=1, label="New tokens", visible=app.head.generates
                )
                button = gradio.Button("Run", variant="primary")
            with gradio.Column():
                shown = [gradio.HTML(elem_id=f"ld-{name}") for name in ("answer", "layers", "cost")]
        table = gradio.HTML(elem_id="ld-table")

        def show(choice: int, length: int, *given: Any) -> list[str]:
            numbers, words = given[: len(sliders)], given[len(sliders) :]
            by_depth = dict(zip(app.depths, map(int, numbers), strict=True))
            return answer_as_html(app, words, choice, by_depth, int(length))

        gradio.on(
            [
                page.load,
                button.click,
                choice.input,
                *(slider.input for slider in (length, *sliders)),
                *(box.submit for box in texts),
            ],
            show,
            [choice, length, *sliders, *texts],
            [*shown, table],
            concurrency_limit=1,  # one model, one cut at a time
            trigger_mode="always_last",
            show_progress="minimal",
            api_visibility="private",
        )
        choice.input(
            lambda choice: gradio.update(visible=choice == BY_DEPTH),
            choice,
            depths,
            queue=False,
            api_visibility="private",
        )
    page.queue(api_open=False, max_size=64)
    return page


def _textbox(gradio: Any, label: str, text: str) -> Any:
    lines = 1 if label in ("Question", "Sentence") or not text else 3
    return gradio.Textbox(text, label=label, lines=lines, max_lines=12, max_length=LONGEST_TEXT)


def _theme() -> Any:
    """Return Gradio's theme with fonts that are on the machine, so that none is fetched."""
    from gradio import themes

    theme = themes.Default(
        primary_hue="blue",
        font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(button_primary_background_fill="*primary_600")  # white is hard to read on what it has
