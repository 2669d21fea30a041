import pandas as pd
import pytest

from sinklens.errors import InputError
from sinklens.plots.sink_emergence import sink_emergence


def row(condition: str, figure: str, values: str, reading: str = "weights") -> dict[str, object]:
    numbers = [float(value) for value in values.split(";")]
    mean = sum(numbers) / len(numbers)
    return {"condition": condition, "group": "g", "reading": reading, "figure": figure, "mean": mean, "values": values}


SUMMARY = pd.DataFrame(
    [
        row("soft<b>max", "mass_first_bigram", "0.7;0.9"),
        row("soft<b>max", "mass_first_backcopy", "0.01;0.03"),
        row("soft<b>max", "output_norm_bigram", "2;3"),
        row("sigmoid", "mass_first_bigram", "0.8;0.6", "proxy"),
        row("sigmoid", "drain_first", "0.4;0.5"),
        row("sigmoid", "loss_backcopy", "5;5"),
    ]
)


def test_every_seed_is_a_point_in_its_conditions_row_and_what_is_missing_stays_missing() -> None:
    fig = sink_emergence(SUMMARY)
    first = [trace for trace in fig.data if trace.xaxis == "x"]
    points, means = first[0], first[1]
    assert points.x.tolist() == pytest.approx([0.7, 0.9, 0.8, 0.6]) and list(points.y) == [0, 0, 1, 1]
    assert means.x.tolist() == pytest.approx([0.8, 0.7]) and list(means.y) == [0, 1]
    hidden = [trace for trace in fig.data if trace.xaxis == "x2"]
    assert all(len(trace.x) == 0 for trace in hidden)
    assert not any(5.0 in (trace.x if trace.x is not None else []) for trace in fig.data)


def test_conditions_are_escaped_and_proxies_starred() -> None:
    fig = sink_emergence(SUMMARY)
    assert list(fig.layout.yaxis.ticktext) == ["soft&lt;b&gt;max", "sigmoid *"]
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]  # first at the top
    assert "proxy" in fig.layout.title.text and "2 seeds" in fig.layout.title.text
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        assert axis.type in (None, "linear", "log")


def test_nothing_measured_is_said_and_wrong_tables_are_refused() -> None:
    assert "Not applicable" in sink_emergence(SUMMARY.iloc[5:]).layout.annotations[0].text
    with pytest.raises(InputError, match="values"):
        sink_emergence(SUMMARY.drop(columns="values"))
