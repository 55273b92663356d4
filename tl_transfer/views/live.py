"""Live steering in a notebook: prompts, a slider, and the arms side by side while they speak.

A generation runs to its end before the next event is handled, so nothing is attached to the model
while another cell runs. Moving a slider or pressing Generate starts a new one; interrupting the
kernel stops it.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_transfer.errors import InputError, ModelError, TransferError
from tl_transfer.models.surface import HookedModel
from tl_transfer.report.table import escape
from tl_transfer.views.steering import Arm, Steering, view_of
from tl_transfer.views.view import View

#: Seconds between two updates of the page: more would only fill the connection.
PERIOD = 0.08


class LiveSteering:
    """The widget and what it steers; made by `live`.

    Attributes:
        steering: Prompts, strengths and texts as they are now.
        rows: (prompt, slider) of each row.
        power: Whether the arms are steered.
        length: Tokens of a continuation.
        button: Starts a generation.
        output: Where the arms are shown.
        box: All of it, to place in a layout of your own.
    """

    def __init__(self, steering: Steering, limits: tuple[float, float]) -> None:
        widgets = _widgets()
        self.steering = steering
        step = (limits[1] - limits[0]) / 100
        wide = widgets.Layout(width="32rem", max_width="95%")
        self.rows = [
            (
                widgets.Text(prompt, description="prompt", continuous_update=False, layout=wide),
                widgets.FloatSlider(
                    strength,
                    min=limits[0],
                    max=limits[1],
                    step=step,
                    readout_format="+.3f",
                    description="strength",
                    continuous_update=False,
                    layout=widgets.Layout(width="26rem", max_width="95%"),
                ),
            )
            for prompt, strength in zip(steering.prompts, steering.strengths, strict=True)
        ]
        self.power = widgets.ToggleButton(True, description="steering on", icon="power-off")
        self.length = widgets.BoundedIntText(
            steering.max_new_tokens, min=1, max=512, description="tokens",
            layout=widgets.Layout(width="10rem"),
        )  # fmt: skip
        self.button = widgets.Button(description="Generate", icon="play")
        self.output = widgets.HTML(view_of(steering).html())
        lines = [
            widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in self.rows
        ]
        controls = widgets.HBox([self.power, self.length, self.button])
        self.box = widgets.VBox([*lines, controls, self.output])
        for prompt, slider in self.rows:
            prompt.observe(self._changed, "value")
            slider.observe(self._changed, "value")
        for control in (self.power, self.length):
            control.observe(self._changed, "value")
        self.button.on_click(self._changed)

    def generate(self) -> None:
        """Run every arm as the controls stand, and show the texts as they grow."""
        steering = self.steering
        steering.on = self.power.value
        self.power.description = "steering on" if steering.on else "steering off"
        steering.max_new_tokens = self.length.value
        self.button.disabled = True
        try:
            prompts = [prompt.value for prompt, _ in self.rows]
            steering.set(prompts, [slider.value for _, slider in self.rows])
            shown = 0.0
            for _ in steering.stream():
                if time.monotonic() - shown > PERIOD:
                    self.output.value = view_of(steering).html()
                    shown = time.monotonic()
            self.output.value = view_of(steering).html()
        except TransferError as error:
            # In a callback it would end up in a log that nobody reads.
            self.output.value = f'<pre role="alert">{escape(str(error))}</pre>'
        finally:
            self.button.disabled = False

    def view(self) -> View:
        """The present texts as a view: `save_html` and `save_png` need no kernel."""
        return view_of(self.steering)

    def save_html(self, path: str | Path) -> Path:
        """Write the present texts as a page; `steer` writes one with a slider."""
        return self.view().save_html(path)

    def _changed(self, _: Any) -> None:
        self.generate()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        # What a reader without a kernel sees: the texts as they are now.
        return bundle | {"text/html": self.view().html()}


def live(
    model: HookedModel,
    arms: Mapping[str, Arm],
    prompts: str | Sequence[str],
    *,
    strength: float | Sequence[float] = 0.05,
    limits: tuple[float, float] = (-0.15, 0.15),
    max_new_tokens: int = 24,
) -> LiveSteering:
    """A widget to steer by hand: for JupyterLab, Notebook 7 and VS Code (needs ipywidgets).

    The arms are generated once before it is shown, and again whenever a prompt, a slider or the
    switch changes. Each row has a strength of its own.

    Args:
        model: The steered model.
        arms: As for `steer`, e.g. ``{"native": native, "transferred": moved}``.
        prompts: One a row.
        strength: One for all rows, or one for each, in median residual norms.
        limits: Ends of the sliders.
        max_new_tokens: Length of a continuation.

    Returns:
        The widget with its `steering`.

    Raises:
        InputError: see `Steering`; or a strength that lies outside the limits.
        ModelError: ipywidgets is not installed.
    """
    steering = Steering(model, arms, prompts, strength=strength, max_new_tokens=max_new_tokens)
    # A slider would quietly move a value from beyond its ends to them.
    if not limits[0] < limits[1] or any(
        not limits[0] <= s <= limits[1] for s in steering.strengths
    ):
        raise InputError(
            "limits: ends of the sliders, with every strength between them",
            got=f"limits {limits}, strengths {steering.strengths}",
            valid="(low, high) with low below high",
            hint="in median residual norms: (-0.15, 0.15) steers, 1 breaks most models",
        )
    widget = LiveSteering(steering, limits)
    widget.generate()
    return widget


def _widgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ModelError(
            "views.live: needs ipywidgets, which is not installed",
            got=str(error),
            valid="the package ipywidgets",
            hint='pip install "tl-transfer[viz]", or use views.steer, which needs none',
        ) from error
    return ipywidgets
