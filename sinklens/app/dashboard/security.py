"""What keeps the dashboard this person's own: other sites cannot reach it through the browser."""

import json
import logging
from collections.abc import Collection, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request
from werkzeug.exceptions import BadRequest, HTTPException

LOCAL: Final = ("127.0.0.1", "localhost", "::1")

UPDATE: Final = "_dash-update-component"
_LOG: Final = logging.getLogger("sinklens.dashboard")
_PER_REQUEST: Final = 8 << 20


def guard(server: Flask, hashes: Iterable[str], hosts: Iterable[str] = ()) -> None:
    """Refuse requests under a foreign name, and forbid the page everything but its own server.

    A site that points its own name at 127.0.0.1 (DNS rebinding) sends that name as ``Host``; a page of another site
    that posts here sends its own as ``Origin``, and so does whatever else is served on another port of this machine.
    All get 403. A request that is no message of the page gets 400.

    Args:
        server: The Flask server under the app.
        hashes: Of the page's own inline scripts, for its content security policy.
        hosts: More names under which the page may be asked for, such as that of a proxy.
    """
    named = {host.lower() for host in hosts}
    allowed = {*LOCAL, *named}
    server.config["MAX_CONTENT_LENGTH"] = _PER_REQUEST
    server.config["MAX_FORM_MEMORY_SIZE"] = _PER_REQUEST
    scripts = " ".join(f"'{each}'" if not each.startswith("'") else each for each in hashes)
    policy = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
        "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; worker-src blob:; "
        "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    )

    @server.before_request
    def refuse_foreign() -> None:
        if host_name(request.host) not in allowed:
            abort(403, "This dashboard answers to 127.0.0.1 and localhost only.")
        origin = request.headers.get("Origin")
        if origin and origin != "null" and not _own(origin, request.host, named):
            abort(403, "This dashboard takes no requests from other sites.")
        if request.method == "POST" and (origin == "null" or request.headers.get("Sec-Fetch-Site") == "cross-site"):
            abort(403, "This dashboard takes no requests from other sites.")

    @server.before_request
    def refuse_malformed() -> None:
        if request.path.endswith(UPDATE) and request.method == "POST" and not is_message(request.get_data()):
            abort(400, "This is no message of the dashboard's page.")

    @server.errorhandler(Exception)
    def tell(error: Exception) -> Any:
        if isinstance(error, HTTPException):
            return error
        # the parts of the page tell their own errors; what comes here is a message that fits none of them
        _LOG.warning("A request was refused: %s: %s", type(error).__name__, str(error)[:200])
        _LOG.debug("It failed here", exc_info=error)
        return BadRequest("This message fits no part of the dashboard's page.")

    @server.after_request
    def restrict(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-site"
        return response


def _own(origin: str, host: str, named: Collection[str]) -> bool:
    """Whether a page came from this server: the same name and port, or a name that a proxy of ours has."""
    try:
        parts = urlsplit(origin)
        return parts.netloc.lower() == host.lower() or (parts.hostname or "") in named
    except ValueError:
        return False


def is_message(body: bytes) -> bool:
    """Whether a request's body has the form of what Dash's page sends.

    >>> (
    ...     is_message(b'{"output": "a.b", "inputs": [], "changedPropIds": []}'),
    ...     is_message(b"[1]"),
    ...     is_message(b"[" * 10**5),
    ... )
    (True, False, False)
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(content, dict) or not isinstance(content.get("output"), str):
        return False
    parts = [content.get(name, []) for name in ("inputs", "state", "changedPropIds")]
    outputs = content.get("outputs", {})
    return all(isinstance(part, list) for part in parts) and isinstance(outputs, dict | list)


def host_name(host: Any) -> str:
    """The name in a ``Host`` header, without its port.

    >>> host_name("127.0.0.1:8050"), host_name("[::1]:8050"), host_name("Evil.example")
    ('127.0.0.1', '::1', 'evil.example')
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
