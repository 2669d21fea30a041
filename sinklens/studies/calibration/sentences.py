"""What a calibration came to, in sentences: a gain, a loss, a gain of form only, or nothing beyond chance."""

import math
from typing import TYPE_CHECKING

from sinklens.evidence.bootstrap import Interval

if TYPE_CHECKING:
    from sinklens.studies.calibration.result import Calibration


def calibrated(calibration: "Calibration") -> list[str]:
    """Sentences about the prompts reported on: accuracy, its two parts, random heads, and the search's own notes.

    A gain is one only if accuracy and accuracy given validity both rise beyond chance; a fall beyond chance is called
    that. Rates that do not exist (no valid answer) are not spoken of.
    """
    if calibration.intervention is None:
        return ["Nothing was chosen.", *calibration.notes]
    change, gain = calibration.change, calibration.accuracy_gain
    before, after = change.before, change.after
    sentences = [
        f"On {after.n} held-out prompts accuracy goes from {before.accuracy:.3f} to {after.accuracy:.3f}, by "
        f"{_span(gain)}: {_found(calibration)}.",
        f"Valid answers go from {before.valid_rate:.3f} to {after.valid_rate:.3f}, {_given_valid(calibration)}.",
    ]
    controls = calibration.controls
    if controls.n:
        sets = "set of as many heads changes" if controls.n == 1 else "sets of as many heads change"
        spread = f" (sd {controls.sd:.3f})" if controls.n > 1 else ""
        reach = round(controls.p * (controls.n + 1)) - 1
        sentences.append(
            f"{controls.n} random {sets} it by {controls.mean:+z.3f}{spread}; {reach} of {controls.n} "
            f"{'does' if reach == 1 else 'do'} at least as well as the chosen ones (p = {controls.p:.2g})."
        )
    else:
        sentences.append("There are no random heads to compare with.")
    return [*sentences, *calibration.notes]


def _found(calibration: "Calibration") -> str:
    gain, change = calibration.accuracy_gain, calibration.change
    if math.isnan(gain.low):
        found = "too few prompts to tell from chance"
    elif calibration.is_gain:
        found = "a gain"
    elif gain.low > 0:
        found = "more right answers, but accuracy given validity is not shown to rise"
    elif gain.high < 0:
        found = "a loss beyond chance"
    else:
        found = "no change beyond chance"
    if calibration.format_effect:
        among = "no larger share of them is right" if change.before.valid else "before there was none to compare with"
        found += f"; a format effect: more of the answers are labels, and {among}"
    return found


def _given_valid(calibration: "Calibration") -> str:
    change = calibration.change
    ends = [rates.accuracy_given_valid for rates in (change.before, change.after)]
    told = ["n/a (no valid answer)" if math.isnan(end) else f"{end:.3f}" for end in ends]
    by = "" if any(map(math.isnan, ends)) else f", by {_span(calibration.accuracy_given_valid_gain)}"
    return f"accuracy given validity from {told[0]} to {told[1]}{by}"


def _span(interval: Interval) -> str:
    """``+0.050 [-0.010, +0.100]``."""
    if math.isnan(interval.low):
        return f"{interval.value:+z.3f} (no interval: {interval.note})"
    return f"{interval.value:+z.3f} [{interval.low:+z.3f}, {interval.high:+z.3f}]"
