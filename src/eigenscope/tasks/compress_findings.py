"""What a compression amounts to, in sentences with the figures that they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from eigenscope.results import Estimate
from eigenscope.tasks.compress_measure import HELD_OUT, TradeOff
from eigenscope.tasks.compress_rivals import Rival

WIDE = 2.0
"""Factor between prediction and measurement beyond which the second-order expansion is said not to hold."""
CERTAIN = 2.0
"""Standard errors."""
NEAR = 0.005
"""Shares closer than that are the same."""
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
        points: of the curve, in any order.
        chosen: the model that was made.
        rivals: measured in the same run.
    """
    curve = {round(point.keep, 6): point for point in (*points, chosen)}
    ordered = [curve[keep] for keep in sorted(curve, reverse=True)]
    return [*_predictions(ordered), *_texts(chosen), *_rivals(ordered, rivals)]


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
    for point in points:
        # The last text is the one furthest from what was fitted to: one that was given to be measured on, if any was.
        text = list(point.measured)[-1]
        ours = point.measured[text]
        found = [
            (each.measured[text], rival.name) for rival in rivals for each in rival.points
            if abs(each.keep - point.keep) < NEAR and text in each.measured
        ]  # fmt: skip
        if not found:
            continue
        best, name = min(found, key=lambda pair: pair[0].value)
        error = CERTAIN * (best.stderr**2 + ours.stderr**2) ** 0.5
        if best.value - ours.value > error:
            share = f"{max(ours.value, 0.0) / best.value:.2g} × what the best rival, {name} with uniform ranks, adds"
        elif ours.value - best.value > error:
            share = f"more than {name} with uniform ranks adds"
        else:
            share = f"not told apart from what {name} with uniform ranks adds"
        yield _sentence(f"at {point.keep:.3g}, on {text}, {_loss(ours)} is added: {share}, {_loss(best)}")


def _loss(found: Estimate) -> str:
    return f"{found.value:.3g} ± {found.stderr:.2g}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def overfit(predicted: float, fitted: float) -> Iterator[str]:
    """Whether the layers lose much more on the held-out text than on the one they were fitted to, in words."""
    if fitted > 0.0 and predicted > 1.5 * fitted:
        yield _sentence(
            f"on held-out text the layers are predicted to lose {predicted / fitted:.1f} × what they do on the text they were "
            "fitted to: more text would help"
        )
