"""What may be sent to the dashboard by somebody who is not its page: 4xx and no traceback; and it does not grow."""

import gc
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.callbacks.navigate import changed
from sinklens.app.dashboard.state import State
from sinklens.models import load

HOST = {"Host": "127.0.0.1:8050"}
UPDATE = "/_dash-update-component"


def message(value: Any = "data:;base64,PGI+", **changes: Any) -> dict[str, Any]:
    """What the page sends when a text file is chosen."""
    outputs = [{"id": name, "property": "value"} for name in ("text", "tokens-of")]
    return {
        "output": "..text.value...tokens-of.value..",
        "outputs": outputs,
        "inputs": [{"id": "upload", "property": "contents", "value": value}],
        "state": [{"id": "upload", "property": "filename", "value": "a.txt"}],
        "changedPropIds": ["upload.contents"],
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
    answer = client.post(UPDATE, json=message(), headers=HOST)
    assert answer.status_code == 200 and json.loads(answer.text)["response"]["text"]["value"] == "<b>"


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


NUMBERS = ["9" * 400, "-" + "9" * 399, "1e308", "-1e308", "1e400", "nan", "inf", "[1]", "x", "0x9", "9" * 5000]


@pytest.mark.parametrize("text", NUMBERS, ids=[text[:8] for text in NUMBERS])
def test_a_number_that_no_intervention_takes_is_refused(text: str, app: Any) -> None:
    bench, fields = app.server.config["SINKLENS_BENCH"], State.from_mapping({"fields": {"window": text}}).fields
    assert len(fields["window"]) <= 400
    for name in ("SlidingWindow", "top_k"):
        field = "window" if name == "SlidingWindow" else "k"
        bench.compute(State(method=name, fields={field: fields["window"]}), "bb-3l", "", "auto", False)
        status = bench.worker.wait(120)
        assert status.error and "failed" not in status.error and len(status.error) < 300, status.error


FIELDS: list[Any] = [{"keys": 3}, {3: "x"}, [], "x", {"<b>": "1"}, {"a" * 99: "1"}, {f"a{n}": "1" for n in range(9999)}]


@pytest.mark.parametrize("fields", FIELDS, ids=[str(each)[:9] for each in FIELDS])
def test_fields_that_are_none_are_left_out(fields: Any) -> None:
    assert len(State.from_mapping({"fields": fields}).fields) in (0, 24)


@pytest.mark.parametrize("prop", ['{"field":"keys"}', '{"use":"keys"}', '{"trial":"x"}', "{}", "{", '{"a":1}', "{[]}"])
def test_a_part_of_the_form_that_there_is_not_changes_nothing(prop: str, app: Any) -> None:
    bench = app.server.config["SINKLENS_BENCH"]
    assert changed(bench, State(), f"{prop}.value", {f"{prop}.value": ["<b>"]}) == State()


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
        state = State(method="AblateHeads", fields={"heads": "L0H0"}) if number % 10 == 0 else State()
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
