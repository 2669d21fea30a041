"""Trying an intervention: making it from its form, its effect beside equal-sized controls, and what was tried."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from transformer_lens.model_bridge import TransformerBridge

from sinklens.app.dashboard.methods import Method, as_python, build, described, given, source_of_taken
from sinklens.errors import InputError
from sinklens.evidence.controls import compare_with_controls
from sinklens.evidence.matched_controls import MatchedControls, matched_controls
from sinklens.interventions import Intervention, mean_activations, mean_outputs, mean_values
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.models.tokens import TokenBatch
from sinklens.passes.corpus import builtin_corpus
from sinklens.policies import Policy, make_policy
from sinklens.policies.registry import budgeted
from sinklens.results.progress import Progress
from sinklens.studies.effects.run import measure_effects

CONTROLS: Final = 5
SEARCHED: Final = 50
"""Texts of the built-in corpus among which one is looked for that is long enough to resample from."""

MOST_LOGITS: Final = 100_000_000
SHARE: Final = 0.25
"""Budget of a policy whose fields were left alone, as a share of the text: what they default to is longer than most."""


@dataclass(frozen=True)
class Trial:
    """One intervention that was tried on some tokens; numbers are ``None`` where they were not measured.

    Attributes:
        base: Name of the result without it.
        live: Name of the result under it.
        label: The intervention in one line.
        intervention: As JSON content.
        python: Three lines that repeat it.
        model: Name of the model.
        tokens: What the tokens are.
        clean_loss: Loss without it, nats per token.
        loss: Loss under it.
        delta: Change of the loss.
        kl: KL divergence from the clean predictions, nats.
        top1: Share of positions with the same first choice.
        controls: Changes of the loss under each control.
        kind: Of what the controls are random choices.
        mean: Mean of the controls.
        sd: Their standard deviation.
        rank: Of the tested change among itself and the controls, 1 the largest.
        notes: What else to know.
    """

    base: str
    live: str
    label: str
    intervention: Mapping[str, Any]
    python: str
    model: str
    tokens: str
    clean_loss: float | None = None
    loss: float | None = None
    delta: float | None = None
    kl: float | None = None
    top1: float | None = None
    controls: tuple[float, ...] = ()
    kind: str = ""
    mean: float | None = None
    sd: float | None = None
    rank: float | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """What it did, for the head of the page."""
        out = [f"{self.label}."]
        if self.delta is not None:
            out[0] += (
                f" Loss on these tokens {self.clean_loss:.3f} → {self.loss:.3f} nats per token ({self.delta:+z.3f}); "
                f"KL {self.kl:.3g} nats; same first choice at {self.top1:.0%} of positions."
            )
        if self.mean is not None:
            spread = "" if self.sd is None else f" ± {self.sd:.3f}"
            count = len(self.controls)
            out.append(
                f"Controls, {count} random {'set' if count == 1 else 'sets'} of as many other {self.kind}: "
                f"{self.mean:+z.3f}{spread} nats; the change ranks {self.rank:g} of {count + 1}."
            )
        return (*out, *self.notes)


def chosen_intervention(
    chosen: Method, typed: Mapping[str, str], model: TransformerBridge, batch: TokenBatch
) -> Intervention:
    """The intervention that the form describes, checked against the model; means come from the same tokens.

    Raises:
        InputError: What was typed cannot be read, or the model or the text has no such head or position.
    """

    def taken(name: str, arguments: dict[str, Any]) -> Any:
        source = source_of_taken(chosen.kind.__name__, arguments)
        if source is None or source[0] != name:
            return None
        if source[1] == "mean_values":
            return mean_values(model, batch)
        if source[1] == "mean_activations":
            return mean_activations(model, batch, arguments["where"])
        return head_outputs(model, batch, str(arguments["how"]), arguments["heads"])

    if _takes_a_share(chosen, typed):
        intervention: Intervention = make_policy(f"{chosen.name}:budget={SHARE}", length=int(batch.lengths.max()))
    else:
        intervention = build(chosen, typed, taken)
    intervention.check(model)
    length = int(batch.lengths.max())
    for name in ("keys", "span", "target"):
        last = max(getattr(intervention, name, None) or (0,))
        if last >= length:
            raise InputError(f"Position {last} does not exist: the longest text has the positions 0 to {length - 1}.")
    return intervention


def called(chosen: Method, typed: Mapping[str, str]) -> str:
    """What was tried, in one line: its fields, or for a policy whose fields were left alone the share that it keeps.

    >>> from sinklens.app.dashboard.methods import method
    >>> called(method("h2o"), {}), called(method("h2o"), {"heavy": "4"})
    ('H2O(budget=0.25)', 'H2O(heavy=4)')
    """
    return f"{chosen.kind.__name__}(budget={SHARE})" if _takes_a_share(chosen, typed) else described(chosen, typed)


def _takes_a_share(chosen: Method, typed: Mapping[str, str]) -> bool:
    return issubclass(chosen.kind, Policy) and budgeted(chosen.kind) and not given(chosen, typed)


def head_outputs(model: TransformerBridge, batch: TokenBatch, how: str, heads: Any) -> dict[str, list[Any]]:
    """What ablation puts in the place of heads: their mean on these tokens, or their output on another prompt.

    Raises:
        InputError: No other prompt is as long as these tokens.
    """
    if how == "mean":
        return mean_outputs(model, batch, heads=heads)
    return prompt_outputs(model, other_prompt(model, int(batch.lengths.max())), heads=heads)


def other_prompt(model: TransformerBridge, length: int) -> TokenBatch:
    """A prompt of the built-in corpus that is at least so long.

    Raises:
        InputError: It has none.
    """
    found = builtin_corpus(model, n_sequences=SEARCHED, length=length, seed=1).tokens
    rows = [index for index, each in enumerate(found.lengths.tolist()) if each >= length]
    if not rows:
        raise InputError(
            f"No text of the built-in corpus has {length} tokens to resample from; choose another way to ablate."
        )
    return found.rows(rows[:1])


def try_out(
    trial: Trial,
    chosen: Method,
    model: TransformerBridge,
    batch: TokenBatch,
    intervention: Intervention,
    progress: Progress,
) -> Trial:
    """Measure what an intervention does to the predictions on these tokens, beside equal-sized random controls."""
    if chosen.looks_ahead:
        return replace(trial, notes=(f"{chosen.looks_ahead}, so no loss of it means anything.",))
    if int(batch.lengths.max()) * int(model.cfg.d_vocab) > MOST_LOGITS:
        note = "Its effect on the loss was not measured: the logits of this text would need too much memory."
        return replace(trial, notes=(note,))
    how = str(getattr(intervention, "how", ""))
    progress.step("Preparing random controls")
    matched: MatchedControls = matched_controls(
        model,
        batch,
        intervention,
        draws=CONTROLS,
        outputs=lambda heads: head_outputs(model, batch, how, heads),
    )
    tested = {"tested": intervention} | {f"control {i}": each for i, each in enumerate(matched.interventions)}
    progress.step("Measuring its effect and that of random controls")
    effects = measure_effects(model, tested, batch, progress=progress)
    rows = {str(row["intervention"]): row for row in effects.summary().to_dict("records")}
    went = tuple(
        each.replace("Under tested", "Sink", 1) for each in effects.verdict if each.startswith("Under tested:")
    )
    own = rows.pop("tested")
    controls = tuple(float(row["delta_loss"]) for row in rows.values())
    among = compare_with_controls(float(own["delta_loss"]), controls)
    note = matched.note if controls else matched.note or "No control of equal size could be drawn."
    return replace(
        trial,
        clean_loss=float(own["clean_loss"]),
        loss=float(own["loss"]),
        delta=float(own["delta_loss"]),
        kl=float(own["kl"]),
        top1=float(own["top1_agreement"]),
        controls=controls,
        kind=matched.kind,
        mean=_known(among.mean),
        sd=_known(among.sd),
        rank=_known(among.rank),
        notes=(*went, *([note] if note else [])),
    )


def repeat_in_python(
    chosen: Method, typed: Mapping[str, str], intervention: Intervention, model: str, tokens: str
) -> str:
    """Three lines of Python that measure the same effect again.

    Args:
        chosen: The method.
        typed: Its fields.
        intervention: What was made of them.
        model: Name or path of the model.
        tokens: Expression for the tokens, in which ``model`` is the bridge.
    """
    made, names = as_python(chosen, typed)
    if isinstance(intervention, Policy):
        made, names = f"Intervention.from_json({intervention.to_json()!r})", ["Intervention"]
    imports = ["import sinklens", "from sinklens.studies import measure_effects"]
    if plain := sorted({*names} - {"prompt_outputs"}):
        imports.append(f"from sinklens.interventions import {', '.join(plain)}")
    if "prompt_outputs" in names:  # the other prompt is found as above
        imports.append("from sinklens.app.dashboard.trying import other_prompt, prompt_outputs")
        made = made.replace("(model, batch", "(model, other_prompt(model, int(batch.lengths.max()))")
    return "\n".join(
        [
            "; ".join(imports),
            f"model = sinklens.load({model!r}); batch = {tokens}",
            f"print(measure_effects(model, {{{called(chosen, typed)!r}: {made}}}, batch).summary().T)",
        ]
    )


def history_json(trials: Sequence[Trial]) -> str:
    """All that was tried, as JSON text that ``Intervention.from_json`` reads each ``intervention`` of."""
    content = [{key: value for key, value in asdict(trial).items() if key not in ("base", "live")} for trial in trials]
    return json.dumps({"format": "sinklens-trials", "version": 1, "trials": content}, indent=1, allow_nan=False)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
