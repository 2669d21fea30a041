"""What may be sent to the dashboard by somebody who is not its page: 4xx and no traceback; and it does not grow."""

import gc
import json
import logging
import math
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from sinklens.app.dashboard import build_app
from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.callbacks.navigate import _control
from sinklens.app.dashboard.state import State, gamma_of
from sinklens.errors import InputError
from sinklens.models import load

HOST = {"Host": "127.0.0.1:8050"}
UPDATE = "/_dash-update-component"


@pytest.fixture(scope="module")
def app(saved: Path) -> Any:
    return build_app(saved)


@pytest.fixture
def client(app: Any) -> FlaskClient:
    return app.server.test_client()  # type: ignore[no-any-return]


def message(value: Any = 0, **changes: Any) -> dict[str, Any]:
    """What the page sends when the slider of gamma moves."""
    names = [f"row-{name}" for name in ("heads", "keys", "gamma", "how")]
    outputs = [{"id": name, "property": "hidden"} for name in names] + [{"id": "gamma-shown", "property": "children"}]
    return {
        "output": "..{}..".format("...".join(f"{each['id']}.{each['property']}" for each in outputs)),
        "outputs": outputs,
        "inputs": [
            {"id": "method", "property": "value", "value": "scale"},
            {"id": "gamma", "property": "value", "value": value},
        ],
        "changedPropIds": ["gamma.value"],
    } | changes


WHOLE = json.dumps(message())
BODIES: dict[str, bytes | str] = {
    "nothing": b"",
    "no JSON": b"{",
    "cut": WHOLE[: len(WHOLE) // 2],
    "deep": b"[" * 200_000,
    "deep and closed": b"[" * 50_000 + b"]" * 50_000,
    "a list": b"[1]",
    "a number": b"3",
    "null": b"null",
    "bytes": bytes(range(256)),
    "a long number": '{"output": ' + "9" * 10_000 + "}",
    "an empty object": b"{}",
    "an unknown output": json.dumps(message(output="nowhere.children")),
    "an output of a number": json.dumps(message(output=3)),
    "inputs of a number": json.dumps(message(inputs=3)),
    "inputs of numbers": json.dumps(message(inputs=[3, 4])),
    "inputs without ids": json.dumps(message(inputs=[{}, {}])),
    "no inputs": json.dumps(message(inputs=[])),
    "outputs of a number": json.dumps(message(outputs=7)),
    "outputs of numbers": json.dumps(message(outputs=[7])),
    "changes of a number": json.dumps(message(changedPropIds=3)),
}


@pytest.mark.parametrize("how", BODIES)
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_malformed_message_is_refused_without_a_traceback(
    how: str, kind: str, client: FlaskClient, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        answer = client.post(UPDATE, data=BODIES[how], headers=HOST | {"Content-Type": kind})
    assert 400 <= answer.status_code < 500, answer.text
    assert not [record for record in caplog.records if record.exc_info]
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out + answer.text


def test_the_message_that_they_damage_is_a_good_one(client: FlaskClient) -> None:
    answer = client.post(UPDATE, json=message(-1), headers=HOST)
    assert answer.status_code == 200 and '"0.1"' in answer.text


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:9",
        "http://127.0.0.1",
        "http://localhost:8050",
        "http://localhost:1234",
        "http://127.0.0.1:80500",
        "http://127.0.0.1:8050.evil.example",
        "http://127.0.0.1:8050@evil.example",
        "https://evil.example",
        "http://[::1",
        "http://[::1]:8050",
        "file://",
        "127.0.0.1:8050",
        "http://127.0.0.1:8050 http://evil.example",
        "chrome-extension://abc",
        "x" * 5000,
    ],
)
def test_only_the_dashboards_own_origin_is_accepted(origin: str, client: FlaskClient) -> None:
    headers = HOST | {"Origin": origin}
    assert client.post(UPDATE, json=message(), headers=headers).status_code == 403
    assert client.get("/_dash-layout", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "[::1]:8050", "localhost"])
def test_its_own_is(host: str, client: FlaskClient) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.post(UPDATE, json=message(), headers=headers).status_code == 200


GAMMAS: list[Any] = [int("9" * 400), -int("9" * 400), "9" * 400, 1e308, -1e308, 2.5, -2.5, math.inf, math.nan, [1], "x"]


@pytest.mark.parametrize("value", GAMMAS, ids=[str(value)[:8] for value in GAMMAS])
def test_gamma_beyond_its_slider_is_refused(value: Any, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"gamma lies between 0.01 and 100") as error:
        gamma_of(value)
    assert len(str(error.value)) < 120
    with pytest.raises(InputError, match="gamma lies"):
        _control(State(), "gamma", value)
    answer = client.post(UPDATE, data=json.dumps(message(value)), headers=HOST | {"Content-Type": "application/json"})
    assert answer.status_code in (200, 204) and "gamma lies between" in answer.text
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("gamma", [int("9" * 400), "9" * 400, "1e400"])
def test_an_address_with_such_a_gamma_is_one_without(gamma: Any) -> None:
    assert State.from_mapping({"gamma": gamma}).gamma == 1.0


def resident() -> float:
    """MiB of memory that this process holds now, or held at most where that is all that is known."""
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_two_hundred_computations_do_not_add_up() -> None:
    bench = open_source(load("bb-3l", device="cpu"))
    text = "the king is dead and long live the king "

    def work(number: int) -> None:
        # each tenth with a change, which measures the model many times over
        state = State(method="ablate", heads="L0H0") if number % 10 == 0 else State()
        bench.compute(
            state,
            "bb-3l",
            f"{'abcdefghij'[number % 10]} {'klmnopqrstu'[number // 10 % 11]} {'abc'[number // 100]} {text}",
            "auto",
            False,
        )
        status = bench.worker.wait(120)
        assert not status.busy and status.error == ""

    for number in range(25):  # caches, allocators, and as many results as are kept
        work(number)
    before = resident()
    for number in range(25, 225):
        work(number)
    assert resident() - before < 50
