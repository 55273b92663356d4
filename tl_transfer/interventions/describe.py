"""describe: which tokens of a prompt will be read or steered, as text and as coloured HTML."""

import html
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.data.token_bytes import token_bytes
from tl_transfer.interventions.gate import When, gates, read_gates
from tl_transfer.interventions.placement import Placement
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Encoded, Layout
from tl_transfer.positions.where import PositionWarning

#: One colour an intervention; they stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00")
_SINK = "attention sink"
_FIRST = "the first new token is predicted here"


@dataclass(frozen=True)
class TokenMark:
    """What happens at one position.

    Attributes:
        position: Absolute position.
        id: Token id; None for a token that is yet to come.
        text: What it spells.
        strengths: For each intervention its strength here; None where it does not act, NaN where
            that depends on the token to come.
        note: What else is to be said of it.
    """

    position: int
    id: int | None
    text: str
    strengths: tuple[float | None, ...]
    note: str = ""


@dataclass(frozen=True)
class Description:
    """The tokens of a prompt, and some to come, with what each intervention does at them.

    Attributes:
        tokens: In order.
        titles: One line an intervention.
        gates: One line a gate: what it said of this prompt.
    """

    tokens: tuple[TokenMark, ...]
    titles: tuple[str, ...]
    gates: tuple[str, ...] = ()

    def steered(self, i: int = 0) -> list[int]:
        """Positions at which the i-th intervention acts for certain."""
        found = [(token.position, token.strengths[i]) for token in self.tokens]
        return [place for place, s in found if s is not None and not math.isnan(s)]

    def __str__(self) -> str:
        lines = [f"{i}: {title}" for i, title in enumerate(self.titles, start=1)]
        lines += [f"gate: {line}" for line in self.gates]
        width = max(len(repr(token.text)) for token in self.tokens)
        heads = "".join(f"{i:>9}" for i in range(1, len(self.titles) + 1))
        lines.append(f"{'pos':>5}  {'token':<{width}}{heads}")
        for token in self.tokens:
            cells = "".join(f"{_cell(s):>9}" for s in token.strengths)
            shown = repr(token.text) if token.id is not None else token.text
            lines.append(f"{token.position:>5}  {shown:<{width}}{cells}  {token.note}".rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """A fragment of HTML: the text, a bar under each token for each intervention."""
        legend = "".join(
            f"<div>{_bar(i, 1.0, 'inline-block;width:2em')} {html.escape(title)}</div>"
            for i, title in enumerate(self.titles)
        )
        legend += "".join(f"<div>gate: {html.escape(line)}</div>" for line in self.gates)
        largest = [
            max((abs(t.strengths[i] or 0.0) for t in self.tokens), default=0.0) or 1.0
            for i in range(len(self.titles))
        ]
        body = "".join(_token(token, largest) for token in self.tokens)
        return (
            '<div style="font-family:monospace;line-height:1.9;color:inherit;padding:.6em">'
            f'{legend}<div style="margin-top:.6em">{body}</div></div>'
        )

    def _repr_html_(self) -> str:
        return self.html()


def describe(
    model: Any, prompt: str | Encoded, *interventions: Intervention, new: int = 4
) -> Description:
    """Which tokens of a prompt the interventions will act on, without running them.

    Args:
        model: `HookedModel`, or a live host.
        prompt: A text, or what `encode` and `encode_chat` return.
        *interventions: As they would be given to `attach`.
        new: How many tokens to come are listed after the prompt.

    Returns:
        A description; print it, show it in a notebook, or take its `html()`.

    Raises:
        SpaceError: an intervention does not belong to this model.
    """
    from tl_transfer.models.load import load_model

    hooked = load_model(model)
    encoded = prompt if isinstance(prompt, EncodedText | EncodedChat) else encode(
        prompt, hooked.tokenizer
    )  # fmt: skip
    # The last prompt token predicts the first new one, so one column fewer is listed.
    n, ids = len(encoded.ids), torch.tensor([encoded.ids])
    layout = Layout.of(
        torch.ones((1, n), dtype=torch.bool), new=max(new - 1, 0), prompts=[encoded], tokens=ids
    )
    columns, titles = [], []
    said: dict[When, bool] = {}
    for item in interventions:
        titles.append(_title(item, hooked))
        read_gates(hooked, item.where, layout)
        said |= {gate: bool(layout.gates[gate][0]) for gate in gates(item.where)}
        columns.append(_strengths(item, layout, n))
    return Description(
        tuple(
            TokenMark(p, *_spelled(encoded, p, hooked), tuple(c[p] for c in columns), _note(p, n))
            for p in range(layout.positions.shape[1])
        ),
        tuple(titles),
        tuple(f"{gate.condition!r}: {'open' if open_ else 'shut'}" for gate, open_ in said.items()),
    )


def _title(item: Intervention, model: HookedModel) -> str:
    points = item.points(model)
    place = points[0] if len(points) == 1 else f"{len(points)} hook points from {points[0]}"
    return f"{type(item).__name__}, strength {item.strength}, at {place}, {item.where}"


def _strengths(item: Intervention, layout: Layout, n: int) -> list[float | None]:
    """Strength at every column; None where it does not act."""
    with warnings.catch_warnings():  # what it would warn of is what is shown
        warnings.simplefilter("ignore", PositionWarning)
        placement = Placement(item, item.strength, layout)
    found: list[float | None] = []
    for column in range(layout.positions.shape[1]):
        if column >= n and "tokens" in item.where.needs:
            found.append(float("nan"))
            continue
        decision = placement.at(column, column + 1, layout.tokens)
        if decision is None or (decision.mask is not None and not bool(decision.mask[0])):
            found.append(None)
        else:
            strength = decision.strength
            found.append(float(strength if isinstance(strength, float) else strength.flatten()[0]))
    return found


def _spelled(encoded: Encoded, position: int, model: HookedModel) -> tuple[int | None, str]:
    if position >= len(encoded.ids):
        return None, f"(new token {position - len(encoded.ids) + 1})"
    index = encoded.ids[position]
    raw = token_bytes(model.tokenizer)[index]
    return index, (raw or b"?").decode(errors="backslashreplace")


def _note(position: int, n: int) -> str:
    notes = [_SINK] if position == 0 else []
    return "; ".join([*notes, _FIRST] if position == n - 1 else notes)


def _cell(strength: float | None) -> str:
    if strength is None:
        return "."
    return "?" if math.isnan(strength) else f"{strength:.3g}"


def _bar(i: int, opacity: float, display: str = "block") -> str:
    colour = _COLOURS[i % len(_COLOURS)]
    style = f"display:{display};height:4px;background:{colour};opacity:{opacity:.2f}"
    return f'<span style="{style}"></span>'


def _token(token: TokenMark, largest: list[float]) -> str:
    bars = ""
    for i, strength in enumerate(token.strengths):
        unknown = strength is not None and math.isnan(strength)
        part = 0.25 if unknown else abs(strength or 0.0) / largest[i]
        bars += _bar(i, part)
    title = [f"position {token.position}"]
    title += [f"{i}: {_cell(s)}" for i, s in enumerate(token.strengths, start=1) if s is not None]
    title += [token.note] if token.note else []
    shown = html.escape(token.text).replace("\n", "⏎").replace(" ", "&nbsp;")
    style = "display:inline-block;vertical-align:top;margin-right:1px"
    style += ";opacity:.65" if token.id is None else ""
    return f'<span style="{style}" title="{html.escape("; ".join(title))}">{shown}{bars}</span>'
