"""Steering by hand: prompts, arms and strengths that change; what each arm says, side by side.

The logic is here and knows no widget; `tl_transfer.views.live` puts a slider on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tl_transfer.errors import InputError
from tl_transfer.interventions import Add
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel
from tl_transfer.report.table import escape
from tl_transfer.vectors import SteeringVector
from tl_transfer.views.view import View

#: What an arm may be; a vector is added at every position.
Arm = SteeringVector | Intervention | Sequence[Intervention]
OFF = "off"

# Buttons would need a frame of their own; a range input is what people expect, and without scripts
# every strength is simply shown below the one before.
_SLIDER = """
(() => {
  const root = document.currentScript.closest('.tlt');
  const steps = Array.from(root.querySelectorAll('.step'));
  const slider = document.createElement('input'), shown = document.createElement('output');
  Object.assign(slider, {type: 'range', min: 0, max: steps.length - 1, step: 1});
  slider.setAttribute('aria-label', 'strength');
  slider.value = steps.findIndex(s => s.dataset.first !== undefined);
  const pick = () => {
    steps.forEach((s, i) => { s.classList.toggle('gone', i !== Number(slider.value)); });
    shown.textContent = ' strength ' + steps[slider.value].dataset.strength;
  };
  slider.addEventListener('input', pick);
  const place = root.querySelector('.slider');
  place.replaceChildren(slider, shown);
  place.dataset.drawn = 'yes';
  pick();
})();
"""
_STYLE = """<style>.tlt .step.gone { display: none; }
.tlt .slider input { width: min(24rem, 90%); vertical-align: middle; }
.tlt .said { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9rem; }
.tlt .arms { table-layout: fixed; width: 100%; max-width: 68rem; }
@media print { .tlt .step.gone { display: block; } .tlt .slider { display: none; } }</style>"""


@dataclass(frozen=True)
class Said:
    """What every arm says at one setting.

    Attributes:
        prompts: One a row.
        strengths: One a row, in median residual norms.
        texts: Arm -> continuation of each prompt; ``off`` is the model alone.
    """

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    texts: dict[str, tuple[str, ...]]


class Steering:
    """Arms on one model, with strengths by row that may be changed between runs.

    Nothing stays attached between two runs, so other cells of a notebook see the model as it is.

    Attributes:
        model: The steered model.
        prompts: One a row.
        strengths: One a row; every intervention of every arm gets them.
        on: False leaves the steered arms as the model alone.
        max_new_tokens: Length of a continuation.
    """

    def __init__(
        self,
        model: HookedModel,
        arms: Mapping[str, Arm],
        prompts: str | Sequence[str],
        *,
        strength: float | Sequence[float] = 0.05,
        max_new_tokens: int = 24,
    ) -> None:
        """Arms and prompts as for `tl_transfer.views.steer`.

        Raises:
            InputError: no arm, an arm called ``off``, no prompt, or not one strength a prompt.
        """
        if not arms or OFF in arms:
            raise InputError(
                "arms: need names of their own",
                got=list(arms),
                valid=f'{{"native": vector, "transferred": moved}}; "{OFF}" is the model alone',
                hint="name at least one vector or intervention",
            )
        self.model = model
        self.arms = {name: _interventions(arm) for name, arm in arms.items()}
        self.max_new_tokens = max_new_tokens
        self.on = True
        self._texts: dict[str, tuple[str, ...]] = {}
        self._off_of: tuple[object, ...] = ()
        self.set(prompts, strength)

    def set(self, prompts: str | Sequence[str], strength: float | Sequence[float]) -> None:
        """Other prompts and strengths, one for all rows or one for each.

        Raises:
            InputError: no prompt, or not one strength a prompt.
        """
        rows = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        given = (strength,) * len(rows) if isinstance(strength, int | float) else tuple(strength)
        if not rows or len(given) != len(rows):
            raise InputError(
                "prompts, strength: one strength for all rows, or one for each",
                got=f"{len(rows)} prompts, {len(given)} strengths",
                valid="at least one prompt and as many strengths",
                hint="pass a number for all rows",
            )
        self.prompts, self.strengths = rows, tuple(float(value) for value in given)

    @property
    def said(self) -> Said:
        """What has been said so far at the present setting."""
        return Said(self.prompts, self.strengths, dict(self._texts))

    def stream(self) -> Iterator[Said]:
        """Run every arm, and yield what has been said after each token.

        The model alone is run again only when the prompts or the length have changed.

        Yields:
            `Said`, growing; the last one is complete.

        Raises:
            SpaceError: a vector of another model or hook point.
            InputError: a prompt that is too long.
        """
        off_of = (self.prompts, self.max_new_tokens)
        kept = self._texts.get(OFF) if self._off_of == off_of else None
        self._texts = {name: ("",) * len(self.prompts) for name in (OFF, *self.arms)}
        if kept is None:
            yield from self._arm(OFF, ())
            self._off_of = off_of
        else:
            self._texts[OFF] = kept
        for name, interventions in self.arms.items():
            if self.on:
                yield from self._arm(name, interventions)
            else:
                self._texts[name] = self._texts[OFF]
        yield self.said

    def run(self) -> Said:
        """Run every arm to its end."""
        last = self.said
        for last in self.stream():  # noqa: B007 - the last one counts
            pass
        return last

    def _arm(self, name: str, interventions: tuple[Intervention, ...]) -> Iterator[Said]:
        with attach(self.model, *interventions) as live:
            for index in range(len(interventions)):
                live.set_strength(index, torch.tensor(self.strengths))
            for pieces in live.stream(list(self.prompts), max_new_tokens=self.max_new_tokens):
                assert isinstance(pieces, list)
                said = zip(self._texts[name], pieces, strict=True)
                self._texts[name] = tuple(before + piece.text for before, piece in said)
                yield self.said


def steer(
    model: HookedModel,
    arms: Mapping[str, Arm],
    prompts: str | Sequence[str],
    *,
    strengths: Sequence[float] = (-0.05, 0.0, 0.05),
    max_new_tokens: int = 24,
) -> View:
    """What each arm says at several strengths, with a slider that needs no Python.

    Everything is generated first, greedily, so the page works as a file; where scripts do not run,
    all strengths are shown. `tl_transfer.views.live` generates while you move the slider.

    Args:
        model: The steered model.
        arms: Name -> vector (added at every position), intervention or interventions, e.g.
            ``{"native": native, "transferred": moved}``. Each gets the strength of the slider.
        prompts: One or several.
        strengths: In median residual norms, in the order of the slider.
        max_new_tokens: Length of a continuation.

    Returns:
        A view whose data is a list of `Said`, one a strength.

    Raises:
        InputError: no arm, no prompt or no strength.
    """
    if not strengths:
        raise InputError(
            "strengths: none", got="()", valid="(-0.05, 0.0, 0.05)", hint="leave it out"
        )
    steering = Steering(model, arms, prompts, max_new_tokens=max_new_tokens)
    found = []
    for strength in strengths:
        steering.set(prompts, float(strength))
        found.append(steering.run())
    first = max(range(len(found)), key=lambda i: strengths[i])
    body = "".join(
        f'<div class="step" data-strength="{strength:+g}"{" data-first" if i == first else ""}>'
        f"{table_of(said)}</div>"
        for i, (strength, said) in enumerate(zip(strengths, found, strict=True))
    )
    caption = caption_of(steering) + f" {len(found)} strengths."
    slider = f'<div class="slider"></div>{body}<script>{_SLIDER}</script>'
    return View("Steering at several strengths", caption, _STYLE + slider, found)


def table_of(said: Said) -> str:
    """Prompts down, arms across."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in said.texts)
    rows = "".join(
        f'<tr><th scope="row"><div class="said">{escape(prompt)}</div>'
        f"<small>strength {strength:+.3g}</small></th>"
        + "".join(
            f'<td><div class="said">{escape(texts[i])}</div></td>' for texts in said.texts.values()
        )
        + "</tr>"
        for i, (prompt, strength) in enumerate(zip(said.prompts, said.strengths, strict=True))
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="arms" style="min-width: '
        f'{10 * (len(said.texts) + 1)}rem"><thead><tr><th scope="col">prompt'
        f"</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def caption_of(steering: Steering) -> str:
    """What is shown, and how it was made."""
    n = len(steering.prompts)
    return (
        f"{steering.model.name}, n = {n} prompt{'s' * (n > 1)}, at most "
        f"{steering.max_new_tokens} tokens, greedy. Strength in median residual norms of the layer."
    )


def view_of(steering: Steering) -> View:
    """The present setting as a view without a slider: for export, and where no widget runs."""
    said = steering.said
    return View("Steering", caption_of(steering), _STYLE + table_of(said), said)


def _interventions(arm: Arm) -> tuple[Intervention, ...]:
    if isinstance(arm, SteeringVector):
        return (Add(arm, 0.0),)
    return (arm,) if isinstance(arm, Intervention) else tuple(arm)
