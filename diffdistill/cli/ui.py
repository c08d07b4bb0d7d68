"""`diffdistill ui RUN|MODEL`: the report of a run and images of a model in a browser, on this machine alone.

Gradio (diffdistill[ui]) serves it at 127.0.0.1; nothing is shared, nothing is asked of the network.
"""

import os
from argparse import Namespace
from collections.abc import Callable
from functools import cache, wraps
from html import escape
from pathlib import Path
from typing import Any

from diffdistill.errors import CheckpointError, ConfigError, DiffDistillError
from diffdistill.files import expanded
from diffdistill.reporting.page import page
from diffdistill.reporting.rundata import read_run

HERE = "127.0.0.1"
MOST_IMAGES = 100
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # Gradio's own come from the network
STYLE = "iframe.report { width: 100%; height: 80vh; border: 0; border-radius: 12px; }"


def run(args: Namespace) -> int:
    """Serve until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = gradio_or_error()
    demo = built(args.place, args.device)
    theme = gradio.themes.Default(**FONTS)
    try:
        _, address, _ = demo.launch(
            server_name=HERE, server_port=args.port, share=False, quiet=True, prevent_thread_lock=True, theme=theme,
            css=STYLE,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--port {args.port or '7860 to 7959'} cannot be had ({error}); choose another") from error
    print(f"{address}: {args.place}; Ctrl-C ends it", flush=True)
    demo.block_thread()
    return 0


def gradio_or_error() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"ui needs gradio ({error}); pip install 'diffdistill[ui]'") from error
    return gradio


def model_of(place: str) -> str:
    """The model to draw from: the place itself, or what a run has published; CheckpointError for none yet."""
    folder = expanded(place)
    if not is_run(place):
        return place
    for part in ("student", "model"):
        if (folder / part / "model_index.json").is_file():
            return str(folder / part)
    raise CheckpointError(f"'{place}' has published no model yet; draw when it has ended")


def is_run(place: str) -> bool:
    folder = expanded(place)
    return (folder / "config.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def built(place: str, device: str | None) -> Any:
    """The page: the report of a run, where the place is one, and images of its model."""
    gradio = gradio_or_error()
    drawing = Drawing(place, device)
    with gradio.Blocks(title=f"diffdistill {Path(place).name}", analytics_enabled=False) as demo:
        if is_run(place):
            with gradio.Tab("Run"):
                shown = gradio.HTML(report(place))
                again = gradio.Button("Read again")
                again.click(told(lambda: report(place)), None, shown, api_name="report")
        with gradio.Tab("Draw"):
            with gradio.Row():
                count = gradio.Number(16, label="Images", precision=0, minimum=1, maximum=MOST_IMAGES)
                seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
                steps = gradio.Number(None, label="Steps", info="empty: the model's own", precision=0)
            what = gradio.Textbox(
                label="Class labels or prompt", info="0,1,2 of a model with classes; a prompt of one that draws texts"
            )
            draw = gradio.Button("Draw", variant="primary")
            picture, words = gradio.Image(label="Images", type="pil", format="png"), gradio.Textbox(label="Settings")
            draw.click(told(drawing), [count, seed, steps, what], [picture, words], api_name="draw")
    return demo


def report(place: str) -> str:
    """The report as it is now, as a page within the page."""
    inside = page(read_run(expanded(place)))
    return f'<iframe class="report" title="report" sandbox srcdoc="{escape(inside)}"></iframe>'


def told(act: Callable[..., Any]) -> Callable[..., Any]:
    """The same, whose errors are shown as their sentence."""
    import gradio

    @wraps(act)
    def telling(*given: Any) -> Any:
        try:
            return act(*given)
        except DiffDistillError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return telling


class Drawing:
    """Draws from the model, which is read at first use."""

    def __init__(self, place: str, device: str | None):
        self.place, self.device = place, device
        self.__name__ = "draw"

    @cache  # noqa: B019  # one object a process
    def model(self) -> Any:
        from diffdistill.devices import pick_device
        from diffdistill.pipelines.load import load_model

        return load_model(model_of(self.place), pick_device(self.device))

    def __call__(self, count: float, seed: float, steps: float | None, what: str) -> tuple[Any, str]:
        """A grid, and what made it: `diffdistill sample` with these flags makes the same images."""
        from diffdistill.reporting.grid import image_grid
        from diffdistill.sampling.run import sample

        if not 1 <= int(count) <= MOST_IMAGES:
            raise ConfigError(f"{count:g} images were asked for; ask for 1 to {MOST_IMAGES}")
        model = self.model()
        drawn = sample(
            model, num_images=int(count), seed=int(seed), steps=int(steps) if steps else None, **asked(model, what)
        )
        assert drawn.images is not None  # they were kept
        columns = max(1, round(len(drawn.images) ** 0.5))
        return image_grid(drawn.images, columns, drawn.plan.conditions.captions(len(drawn.images))), repr(drawn)


def asked(model: Any, what: str) -> dict[str, Any]:
    """The words of the box as settings of `sample`; ConfigError for labels that are none."""
    from diffdistill.data.prompts import given_prompts

    if not what.strip():
        return {}
    if model.draws_texts:
        return {"prompts": given_prompts(what.strip(), None)}
    try:
        return {"class_labels": [int(word) for word in what.split(",")]}
    except ValueError:
        raise ConfigError(f"'{what:.60}' is no list of class labels such as 0,1,2") from None
