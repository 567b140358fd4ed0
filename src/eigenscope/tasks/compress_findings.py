"""What a compression amounts to, in sentences with the figures that they rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from eigenscope.results import Estimate
from eigenscope.tasks.compress_measure import HELD_OUT, TradeOff
from eigenscope.tasks.compress_rivals import Rival

WIDE = 2.0
"""Factor between prediction and measurement beyond which the second-order expansion is said not to hold."""
CERTAIN = 2.0
"""Standard errors."""
Verdict = Literal["holds", "too low", "too high", "open"]


def judge(predicted: float, measured: Estimate) -> Verdict:
    """Whether a prediction is within a factor 2 of the measurement; "open" where the measurement's error does not tell."""
    low, high = (measured.value + sign * CERTAIN * measured.stderr for sign in (-1.0, 1.0))
    if low > WIDE * predicted:
        return "too low"
    if high < predicted / WIDE:
        return "too high"
    return "holds" if low >= predicted / WIDE and high <= WIDE * predicted else "open"


def findings(points: Sequence[TradeOff], chosen: TradeOff, rivals: Sequence[Rival]) -> list[str]:
    """Sentences: where the prediction breaks down, on which text the model loses more, what the rivals lose.

    Args:
        points: of the curve.
        chosen: the model that was made.
        rivals: measured in the same run at the shares of the points, or where there are none at that of the model.
    """
    curve = {round(point.keep, 6): point for point in (*points, chosen)}
    ordered = [curve[keep] for keep in sorted(curve, reverse=True)]
    return [*_predictions(ordered), *_texts(chosen), *_rivals(points or (chosen,), rivals)]


def _predictions(points: Sequence[TradeOff]) -> Iterator[str]:
    verdicts = [(point, judge(point.predicted, point.measured[HELD_OUT])) for point in points if point.predicted > 0.0]
    for verdict, words in (
        ("holds", "within a factor 2 of the measurement on held-out text the second-order prediction holds"),
        ("too low", "it breaks down, at less than half of what was measured,"),
        ("too high", "it is more than twice what was measured"),
        ("open", "the measurement is too coarse to tell whether it holds"),
    ):
        shown = [_figures(point) for point, found in verdicts if found == verdict]
        if shown:
            words = words if verdict == "holds" else words.replace("it ", "the second-order prediction ", 1)
            yield _sentence(f"{words} at {', '.join(shown)}")


def _figures(point: TradeOff) -> str:
    return f"{point.keep:.3g} ({point.predicted:.3g} predicted, {_loss(point.measured[HELD_OUT])} measured)"


def _texts(chosen: TradeOff) -> Iterator[str]:
    held = chosen.measured[HELD_OUT]
    for name, found in chosen.measured.items():
        error = CERTAIN * (found.stderr**2 + (WIDE * held.stderr) ** 2) ** 0.5
        if name != HELD_OUT and held.value > 0.0 and found.value - WIDE * held.value > error:
            yield _sentence(
                f"on {name} the loss added, {_loss(found)}, is {found.value / held.value:.2g} × that on held-out text, "
                f"{_loss(held)}: give text of that kind to fit to"
            )


def _rivals(points: Sequence[TradeOff], rivals: Sequence[Rival]) -> Iterator[str]:
    for place, point in enumerate(points if rivals else ()):
        # The last text is the one furthest from what was fitted to: one that was given to be measured on, if any was.
        text = list(point.measured)[-1]
        ours = point.measured[text]
        found = ((rival.points[place].measured[text], rival.name) for rival in rivals)
        best, name = min(found, key=lambda pair: pair[0].value)
        error = CERTAIN * (best.stderr**2 + ours.stderr**2) ** 0.5
        words = "not told apart from what the best rival"
        if best.value - ours.value > error:
            words = f"{max(ours.value, 0.0) / best.value:.2g} × what the best rival"
        elif ours.value - best.value > error:
            words = "more than what the best rival"
        yield _sentence(
            f"at {point.keep:.3g}, on {text}, {_loss(ours)} is added: {words}, {name} with uniform ranks, adds, {_loss(best)}"
        )


def _loss(found: Estimate) -> str:
    error = f"{found.stderr:.2g}" if math.isfinite(found.stderr) else "∞"
    return f"{found.value:.3g} ± {error}".replace("-", "−", 1) if found.value < 0.0 else f"{found.value:.3g} ± {error}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def overfit(predicted: float, fitted: float) -> Iterator[str]:
    """Whether the layers lose much more on the held-out text than on the one they were fitted to, in words."""
    if fitted > 0.0 and predicted > 1.5 * fitted:
        yield _sentence(
            f"on held-out text the layers are predicted to lose {predicted / fitted:.1f} × what they do on the text they were "
            "fitted to: more text would help"
        )
