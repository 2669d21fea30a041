"""Every figure that the documentation draws shows the numbers of its table: a new example needs a check here."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sinklens
from sinklens import plots
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.studies import explain_sinks
from sinklens.studies.policies.result import PolicyComparison
from tests.plots import scored
from tests.plots.checks import array, named, same
from tests.plots.synthetic_sweep import ZERO, synthetic_effects, synthetic_summary

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
HEADS = [(0, 0), (0, 1), (2, 1)]


def sources(page: Path) -> Iterator[str]:
    text = page.read_text("utf-8")
    if page.suffix == ".md":
        yield from re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        return
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        yield "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


def drawn(page: Path) -> list[str]:
    """The calls of a page that draw: `plots.<figure>(...)` and `<result>.plot.<figure>(...)`."""
    found = []
    for source in sources(page):
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            library = isinstance(owner, ast.Name) and owner.id == "plots" and node.func.attr in plots.draws.FIGURES
            if library or (isinstance(owner, ast.Attribute) and owner.attr == "plot"):
                found.append(ast.unparse(node))
    return found


def in_cells(z: Any, table: pd.DataFrame, value: str) -> None:
    """Each head's number lies in its cell, and every other cell is missing."""
    cells = array(z)
    for row in table.to_dict("records"):
        same(cells[int(row["layer"]), int(row["head"])], row[value])
    assert (~np.isnan(cells)).sum() == table[value].notna().sum()


def sink_heatmap(fig: Any, now: dict[str, Any]) -> None:
    in_cells(fig.data[0].z, now["census"].tables["heads"], "sink_rate")


def eps_sweep(fig: Any, now: dict[str, Any]) -> None:
    table = now["census"].tables["eps_sweep"]
    best = now["census"].tables["heads"][["layer", "head", "sink_position"]]
    own = table.merge(best, on=["layer", "head"]).query("position == sink_position")
    for trace, rows in zip(fig.data, (table[table["position"] == 0], own), strict=True):
        assert list(trace.x) == sorted(rows["eps"].unique())
        same(trace.y, [rows.loc[rows["eps"] == eps, "sink_rate"].mean() for eps in trace.x])


def one_map(fig: Any, now: dict[str, Any]) -> None:
    first = next(iter(now["census"].maps.values()))
    same(fig.data[0].z, first.values)
    assert fig.layout.title.text.startswith(f"Attention of L{first.layer}H{first.head}")


def token_strip(text: Any, now: dict[str, Any]) -> None:
    rows = now["census"].tables["tokens"].query("sequence == 0").sort_values("position")
    said = re.findall(r'<span title="position (\d+): [^"]*?\nimportance ([\d.e+-]+|n/a)', text)
    assert [int(position) for position, _ in said] == rows["position"].tolist()
    assert [value for _, value in said] == ["n/a" if x != x else format(x, ".4g") for x in rows["received"]]


def residual_peaks(fig: Any, now: dict[str, Any]) -> None:
    table = now["census"].tables["layers"].sort_values("layer")
    for name, column in (("position 0", "resid_norm_first"), ("other positions", "resid_norm_others")):
        assert list(named(fig, name).x) == table["layer"].tolist()
        same(named(fig, name).y, table[column])


def massive_table(fig: Any, now: dict[str, Any]) -> None:
    table = now["census"].tables["massive"]
    best = table.assign(size=table["value"].abs()).groupby("channel")["size"].max()
    shown = [abs(float(text.replace(",", ""))) for text in fig.data[0].cells.values[2]]
    massive = {*table.loc[table["absolute"] | table["relative"], "channel"]}
    same(shown, (best[best.index.isin(massive)] if massive else best).nlargest(8), rtol=6e-3)


def massive_activations(fig: Any, now: dict[str, Any]) -> None:
    table = now["census"].tables["layers"].sort_values("layer")
    same(named(fig, "largest |h|").y, table["max_abs"])
    same(named(fig, "median |h|").y, table["median_abs"])


def token_types(fig: Any, now: dict[str, Any]) -> None:
    table = now["census"].tables["token_types"].query("by == 'class'")
    whole = {(f"{row['n_sinks']:,.0f} of {row['n_tokens']:,}", row["name"]): row for row in table.to_dict("records")}
    assert len(fig.data[0].x) == len(table) == len(whole)
    for label, share, null in zip(fig.layout.yaxis.ticktext, fig.data[0].x, fig.data[1].x, strict=True):
        name, counts = label.split(", ")[0], label.rsplit("(", 1)[1].removesuffix(")")
        same([share, null], [whole[counts, name]["sink_share"], whole[counts, name]["token_share"]])


def before_after(fig: Any, now: dict[str, Any]) -> None:
    same(fig.data[1].x, now["effects"].summary()["delta_loss"])


def active_dormant(fig: Any, now: dict[str, Any]) -> None:
    for trace, value in zip(fig.data, ("mass", "delta"), strict=True):
        same(trace.z, now["table"][value].to_numpy().reshape(len(HEADS), 2))


def needle_grid(fig: Any, now: dict[str, Any]) -> None:
    grid = now["result"].tables["grid"]
    for trace, variant in zip(fig.data[:2], ("clean", "window"), strict=True):
        for row in grid[grid["variant"] == variant].itertuples():
            same(array(trace.z)[[0.0, 1.0].index(row.depth), [64, 128].index(row.length)], row.exact)


def head_scores(fig: Any, now: dict[str, Any]) -> None:
    for name in ("previous_token", "duplicate_token", "induction"):
        in_cells(named(fig, name).z, now["patterns"].frame, name)


def dynamics(fig: Any, now: dict[str, Any]) -> None:
    same(named(fig, "loss").y, now["dynamics"].tables["steps"]["loss"])
    same(named(fig, "strongest head").y, now["dynamics"].tables["steps"]["importance_first_max"])


def policy_costs(fig: Any, now: dict[str, Any]) -> None:
    table = now["found"].tables["summary"]
    assert [trace.name for trace in fig.data] == ["h2o (causal, head)", "tova (causal, layer)"]
    for trace, rule in zip(fig.data, ("h2o", "tova"), strict=True):
        rows = table[table["rule"] == rule].sort_values("kept")
        same(trace.x, rows["kept"])
        same(trace.y, rows["delta_loss"])


def lifecycle(fig: Any, now: dict[str, Any]) -> None:
    means = now["census"].tables["lifecycle"].groupby("layer")[["before", "attention", "mlp", "after"]].mean()
    same(named(fig, "attention adds").y, means["attention"])
    same(named(fig, "MLP adds").y, means["mlp"])
    same(named(fig, "entry after the layer").y, [means["before"].iloc[0], *means["after"]])


def drain_scatter(fig: Any, now: dict[str, Any]) -> None:
    heads = now["census"].tables["heads"]
    kinds = {trace.name.split(" (")[0]: trace for trace in fig.data if trace.name}
    for name, rows in (("sink head", heads[heads["is_sink"]]), ("other head", heads[~heads["is_sink"]])):
        drawn = sorted(zip(array(kinds[name].x), array(kinds[name].y), strict=True))
        same(drawn, sorted(zip(rows["importance"], rows["drain"], strict=True)))


def sink_share(fig: Any, now: dict[str, Any]) -> None:
    means = now["census"].tables["heads"].groupby("layer")[["importance_first", "null_first"]].mean()
    lines = [array(trace.y) for trace in fig.data if trace.y is not None and len(trace.y) == len(means)]
    for column in means:
        assert any(np.allclose(line, means[column], rtol=1e-5) for line in lines), column


def sink_causes(fig: Any, now: dict[str, Any]) -> None:
    causes = now["causes"]
    total = causes.tables["channels"].query("side == 'key'").groupby(["layer", "head"])["share"].sum()
    marks = named(fig, "margin")
    order = causes.tables["heads"][["layer", "head"]].itertuples(index=False, name=None)
    same(array(marks.x), [total[head] for head in order], rtol=1e-3)


def task_scores(fig: Any, names: dict[str, Any]) -> None:
    table = names["scored"].tables["scores"].set_index("kind")
    for trace in fig.data:
        kind = {"unchanged": "unchanged", "changed, 95 % interval": "change"}.get(trace.name, "control")
        same(array(trace.x), [table.loc[kind, "value"]])
    assert len(fig.data) == 3


CHECKS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "plots.sink_heatmap(census)": sink_heatmap,
    "census.plot.sink_heatmap()": sink_heatmap,
    "census.plot.eps_sweep()": eps_sweep,
    "plots.attention_map(strongest)": one_map,
    "census.plot.attention_map()": one_map,
    "census.plot.token_strip()": token_strip,
    "census.plot.residual_peaks()": residual_peaks,
    "census.plot.massive_table(n=8)": massive_table,
    "census.plot.massive_activations()": massive_activations,
    "census.plot.token_types()": token_types,
    "census.plot.lifecycle()": lifecycle,
    "census.plot.drain_scatter()": drain_scatter,
    "census.plot.sink_share()": sink_share,
    "causes.plot.sink_causes()": sink_causes,
    "plots.before_after(effects)": before_after,
    "plots.active_dormant(table)": active_dormant,
    "plots.active_dormant(heads)": active_dormant,
    "plots.needle_grid(result)": needle_grid,
    "plots.head_scores(patterns, columns=['previous_token', 'duplicate_token', 'induction'])": head_scores,
    "plots.dynamics(dynamics)": dynamics,
    "found.plot.policy_costs()": policy_costs,
    "answers.plot.policy_costs()": policy_costs,
    "scored.plot.task_scores()": task_scores,
}
"""By the call as it stands on a page; it gets the figure and the results that the call's names stand for."""


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    """What the names on the pages stand for: a real census, and small results of known numbers."""
    census = sinklens.scan("tiny-llama", max_sequences=6)
    summary, effects = synthetic_summary(), synthetic_effects()
    rows = summary[(summary["intervention"] == ZERO) & (summary["kind"] == "top")]
    random = np.random.default_rng(0)
    rows_of = [(*head, domain) for head in HEADS for domain in ("a", "b")]
    table = pd.DataFrame(rows_of, columns=["layer", "head", "domain"])
    table = table.assign(**{"class": "all"}, label="active", mass=random.random(6), delta=random.normal(size=6))
    cells = [*product(("clean", "window"), (64, 128), (0.0, 1.0))]
    grid = pd.DataFrame(cells, columns=["variant", "length", "depth"]).assign(n=4, exact=random.random(8))
    scores = pd.DataFrame(HEADS, columns=["layer", "head"])
    metrics = {name: Metric(name, 1, "", "") for name in ("previous_token", "duplicate_token", "induction")}
    columns = ["importance_first", "sink_head_share", "delta_logit", "drain", "drain_wo", "resid_ratio", "loss"]
    steps = pd.DataFrame(random.random((3, 7)), columns=columns)
    steps = steps.assign(step=[1, 10, 100], domain="all", null_first=0.07)
    steps = steps.assign(max_over_median=[2.0, 30.0, 400.0], importance_first_max=random.random(3))
    by_head = pd.DataFrame([(step, "all", *head) for step in (1, 10, 100) for head in HEADS])
    by_head = by_head.set_axis(["step", "domain", "layer", "head"], axis=1)
    by_head = by_head.assign(**dict.fromkeys(("importance_first", "delta_logit", "drain", "drain_wo"), 0.5))
    costs = pd.DataFrame({"policy": ["h2o 8", "h2o 16", "tova 8"], "rule": ["h2o", "h2o", "tova"], "scope": "causal"})
    costs = costs.assign(group=["head", "head", "layer"], kept=[16.0, 8.0, 8.0], mass=random.random(3))
    costs = costs.assign(delta_loss=random.normal(size=3), delta_loss_low=-2.0, delta_loss_high=2.0)
    compared = PolicyComparison(
        {"policies": {}, "settings": {}}, dict.fromkeys(("summary", "sequences", "heads"), costs)
    )
    return {
        "plots": plots,
        "found": compared,
        "answers": compared,
        "scored": scored.task_scores(),
        "census": census,
        "causes": explain_sinks("tiny-llama", max_sequences=4, top=3, controls=0, donors=False),
        "strongest": next(iter(census.maps.values())),
        "effects": SimpleNamespace(summary=lambda: rows, to_dataframe=lambda: effects),
        "table": table,
        "heads": SimpleNamespace(format="sinklens-active-dormant", meta={}, tables={"heads": table}),
        "result": SimpleNamespace(format="sinklens-needles", meta={}, tables={"grid": grid}),
        "patterns": HeadScores(scores.assign(**{name: random.random(3) for name in metrics}), metrics),
        "dynamics": SimpleNamespace(format="sinklens-dynamics", meta={}, tables={"steps": steps, "heads": by_head}),
    }


def test_every_example_has_a_check_and_every_check_an_example() -> None:
    assert {call for page in PAGES for call in drawn(page)} == {*CHECKS}


@pytest.mark.parametrize("call", CHECKS)
def test_an_example_draws_the_numbers_of_its_table(call: str, now: dict[str, Any]) -> None:
    CHECKS[call](eval(call, dict(now)), now)
