"""The app over HTTP without a browser: who may ask, what is served, and how errors end."""

import builtins
import json
import re
import socket
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from flask.testing import FlaskClient
from typer.testing import CliRunner

from sinklens.app.dashboard import build_app
from sinklens.app.dashboard.build import bench_of
from sinklens.app.dashboard.graphs import square_graph, wide_graph
from sinklens.app.dashboard.serve import make_server
from sinklens.cli.program import app as program
from sinklens.errors import InputError, MissingExtraError

HOST = {"Host": "127.0.0.1:8050"}


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost", "[::1]:8050", "LOCALHOST:9"])
def test_it_answers_to_this_machine(client: FlaskClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "192.168.0.2:8050", ""]
)
def test_a_foreign_name_is_refused(client: FlaskClient, host: str) -> None:
    for path in ("/", "/_dash-layout", "/assets/dashboard.js"):
        assert client.get(path, headers={"Host": host}).status_code in (400, 403)


def test_other_sites_may_not_post(client: FlaskClient) -> None:
    for header in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = client.post("/_dash-update-component", json={}, headers=HOST | header)
        assert answer.status_code == 403
    named = build_app(hosts=["lab.example"])
    asked = {"Host": "lab.example", "Origin": "https://lab.example"}
    assert named.server.test_client().get("/", headers=asked).status_code == 200


def test_the_page_may_ask_nobody_else(client: FlaskClient) -> None:
    answer = client.get("/", headers=HOST)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "'unsafe-eval'" not in policy
    assert (
        "script-src 'self' 'sha256-" in policy
        and "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    )
    for source in answer.text.split('src="')[1:]:
        assert source.startswith(("/", "_dash")), source[:60]  # plotly.js and all the rest from here
        address = source.partition('"')[0]
        assert client.get(f"/{address.lstrip('/')}", headers=HOST).status_code == 200, address
    for graph in (wide_graph("x", go.Figure()), square_graph("x", go.Figure())):
        assert graph.children.config["showSendToCloud"] is False and graph.children.config["plotlyServerURL"] == ""


def test_every_part_that_a_callback_names_is_on_the_page(app: Any) -> None:
    layout = json.dumps(app.layout, default=lambda part: part.to_plotly_json())
    there = set(re.findall(r'"id": "([^"]+)"', layout)) | {"_pages_location"}
    graphs = {"grid", "pair", "map", "map-b", "layer", "positions", "token-heads"}  # only while they show something
    named = {each["id"] for part in app.callback_map.values() for each in (*part["inputs"], *part["state"])}
    named |= {out.rpartition(".")[0] for name in app.callback_map for out in name.strip(".").split("...")}
    named = {name for name in named if not name.startswith("{")}
    assert named - graphs <= there and len(named) > 40


@pytest.mark.parametrize(
    "path", ["/assets/../build.py", "/assets/%2e%2e/build.py", "/..%2f..%2fetc/passwd", "/etc/passwd"]
)
def test_no_other_file_is_served(client: FlaskClient, path: str) -> None:
    answer = client.get(path, headers=HOST)
    assert b"def build_app" not in answer.data and b"root:" not in answer.data


def test_a_part_of_the_page_that_fails_becomes_a_message(client: FlaskClient, app: Any) -> None:
    body = {
        "output": "..drawing-place.children...table-body.children..",
        "outputs": [{"id": name, "property": "children"} for name in ("drawing-place", "table-body")],
        "inputs": [{"id": "all-key", "property": "data", "value": {"run": "broken", "table": "table heads"}}],
        "changedPropIds": ["all-key.data"],
    }
    answer = client.post("/_dash-update-component", json=body, headers=HOST)
    assert answer.status_code == 200 and "is damaged" in answer.text
    body["inputs"] = [{"id": "all-key", "property": "data", "value": {"run": 5, "table": ["x"]}}]
    assert client.post("/_dash-update-component", json=body, headers=HOST).status_code in (200, 204)


def test_a_refused_computation_becomes_a_message(client: FlaskClient, app: Any) -> None:
    def state(name: str, prop: str, value: Any) -> dict[str, Any]:
        return {"id": name, "property": prop, "value": value}

    answer = client.post(
        "/_dash-update-component",
        headers=HOST,
        json={
            "output": "upload",
            "outputs": [{"id": "text", "property": "value"}, {"id": "tokens-of", "property": "value"}],
            "inputs": [state("upload", "contents", "data:;base64,//79")],
            "state": [state("upload", "filename", "<b>x</b>")],
            "changedPropIds": ["upload.contents"],
        }
        | {"output": "..text.value...tokens-of.value.."},
    )
    sides = json.loads(answer.text)["sideUpdate"]
    assert sides["message"]["children"].startswith("<b>x</b> is not a UTF-8 text")


def test_only_this_machine_can_connect(app: Any) -> None:
    server = make_server(app)
    try:
        assert server.host == "127.0.0.1" and server.port > 0
        with pytest.raises(InputError, match="is taken"):
            make_server(app, server.port)
    finally:
        server.server_close()
    with pytest.raises(InputError, match="0 to 65535"):
        make_server(app, 70_000)


def test_without_dash_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "dash" or name.startswith("dash."):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'sinklens\[dashboard\]'"):
        build_app()


def test_the_command(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(program, ["dashboard", "--help"])
    assert said.exit_code == 0 and "127.0.0.1" in said.output and "sinklens dashboard runs" in said.output
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        failed = CliRunner().invoke(program, ["dashboard", str(saved), "--port", port, "--no-browser"])
        assert isinstance(failed.exception, InputError) and "is taken" in str(failed.exception)
    empty = CliRunner().invoke(program, ["dashboard", str(tmp_path), "--no-browser"])
    assert "holds no saved result" in str(empty.exception)


def test_a_model_opens_the_part_that_computes(saved: Path) -> None:
    assert '"open":true' in build_app("tiny-llama").server.test_client().get("/_dash-layout", headers=HOST).text
    assert bench_of(build_app(saved)).first() == "broken"
