"""What a calibration came to, in sentences: a gain, a loss, a gain of form only, or nothing beyond chance."""

import math

from sinklens.evidence.bootstrap import Interval
from sinklens.evidence.controls import ControlComparison
from sinklens.studies.calibration.answer_rates import RateChange


def calibrated(change: RateChange, gain: Interval, given_valid: Interval, controls: ControlComparison) -> list[str]:
    """Sentences about the prompts reported on: accuracy, its two parts, and random heads.

    A gain is one only if accuracy and accuracy given validity both rise beyond chance; a fall beyond chance is called
    that. Rates that do not exist (no valid answer) are not spoken of.

    Args:
        change: The rates before and after.
        gain: Of accuracy.
        given_valid: Gain of accuracy given validity.
        controls: The gain in accuracy among those of random heads.
    """
    before, after = change.before, change.after
    sentences = [
        f"On {after.n} held-out prompts accuracy goes from {before.accuracy:.3f} to {after.accuracy:.3f}, by "
        f"{_span(gain)}: {_found(change, gain, given_valid)}.",
        f"Valid answers go from {before.valid_rate:.3f} to {after.valid_rate:.3f}, "
        f"{_given_valid(change, given_valid)}.",
    ]
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
    return sentences


def _found(change: RateChange, gain: Interval, given_valid: Interval) -> str:
    if math.isnan(gain.low):
        found = "too few prompts to tell from chance"
    elif gain.low > 0 and given_valid.low > 0:
        found = "a gain"
    elif gain.low > 0:
        found = "more right answers, but accuracy given validity is not shown to rise"
    elif gain.high < 0:
        found = "a loss beyond chance"
    else:
        found = "no change beyond chance"
    if change.format_effect:
        among = "no larger share of them is right" if change.before.valid else "before there was none to compare with"
        found += f"; a format effect: more of the answers are labels, and {among}"
    return found


def _given_valid(change: RateChange, given_valid: Interval) -> str:
    ends = [rates.accuracy_given_valid for rates in (change.before, change.after)]
    told = ["n/a (no valid answer)" if math.isnan(end) else f"{end:.3f}" for end in ends]
    by = "" if any(map(math.isnan, ends)) else f", by {_span(given_valid)}"
    return f"accuracy given validity from {told[0]} to {told[1]}{by}"


def _span(interval: Interval) -> str:
    """``+0.050 [-0.010, +0.100]``."""
    if math.isnan(interval.low):
        return f"{interval.value:+z.3f} (no interval: {interval.note})"
    return f"{interval.value:+z.3f} [{interval.low:+z.3f}, {interval.high:+z.3f}]"
