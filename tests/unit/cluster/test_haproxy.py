"""What is corrected in HAProxy's configuration before it starts."""

from __future__ import annotations

from cluster.haproxy import confined

#: As ray 2.60 writes it, cut down to what listens.
WRITTEN = """global
    log 127.0.0.1:514 local0 info
    stats socket /tmp/x/admin.sock mode 666 level admin
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    log /tmp/x/metrics.sock len 8192 format rfc5424 local1 debug
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json string "{}" if routes
    errorfile 503 /tmp/x/500.http
backend lenet
    server one 10.0.0.1:30000 check
    server SERVE_PROXY_ACTOR-fallback 10.0.0.1:8500 check backup
listen stats
  bind *:8404
  stats enable
"""


def listening(config: str) -> list[str]:
    return [line.split()[1] for line in config.splitlines() if line.split()[:1] == ["bind"]]


def test_only_requests_come_in_from_other_machines() -> None:
    assert listening(confined(WRITTEN, "/tmp/x", 128, "*:8000")) == [
        "127.0.0.1:9101",
        "*:8000",
        "127.0.0.1:8404",
        "unix@/tmp/x/lost.sock",
    ]


def test_a_section_that_a_later_ray_adds_is_closed_too() -> None:
    added = WRITTEN + "listen debug\n  bind 0.0.0.0:9999 alpn h2\n  bind [::]:9998\n"
    assert listening(confined(added, "/tmp/x", 128, "*:8000"))[3:5] == ["127.0.0.1:9999", "127.0.0.1:9998"]


def test_models_are_not_named_to_those_without_a_key() -> None:
    rules = [line.strip() for line in confined(WRITTEN, "/tmp/x", 128, "*:8000").splitlines() if "if routes" in line]
    assert rules == ["http-request deny deny_status 404 if routes"]


def test_lost_requests_are_answered_by_our_own_page() -> None:
    pages = [line.split() for line in confined(WRITTEN, "/tmp/x", 128, "*:8000").splitlines() if "errorfile" in line]
    assert {(word, status, page) for word, status, page in pages} == {
        ("errorfile", "502", "/tmp/x/lost.http"),
        ("errorfile", "503", "/tmp/x/lost.http"),
        ("errorfile", "408", "/tmp/x/slow.http"),
        ("errorfile", "400", "/tmp/x/malformed.http"),
    }


def test_no_request_waits_where_no_replica_is_up() -> None:
    backups = [line.split() for line in confined(WRITTEN, "/tmp/x", 128, "*:8000").splitlines() if "backup" in line]
    assert backups == [["server", "lost", "unix@/tmp/x/lost.sock", "backup", "no-check"]]


def test_what_a_replica_has_no_room_for_waits_a_moment_and_is_refused() -> None:
    made = [line.strip() for line in confined(WRITTEN, "/tmp/x", 77, "*:8000").splitlines()]
    assert "server one 10.0.0.1:30000 check maxconn 77" in made
    assert "timeout queue 25ms" in made[made.index("defaults") : made.index("frontend prometheus")]


def test_the_head_of_a_request_has_a_time_limit_and_everything_else_stays() -> None:
    made = confined(WRITTEN, "/tmp/x", 128, "*:8000").splitlines()
    assert "timeout http-request 30000ms" in [line.strip() for line in made[made.index("defaults") :][:3]]
    assert "    timeout http-request 1500ms" in confined(WRITTEN, "/tmp/x", 128, "*:8000", 1.5)
    changed = ("bind", "errorfile", "server", "if routes", "local0")
    kept = [line for line in WRITTEN.splitlines() if not any(word in line for word in changed)]
    assert [line for line in made if line in kept] == kept


def test_nothing_is_logged_to_where_nobody_reads() -> None:
    made = confined(WRITTEN, "/tmp/x", 128, "*:8000").splitlines()
    assert [line.split()[1] for line in made if line.split()[:1] == ["log"]] == ["/tmp/x/metrics.sock"]
