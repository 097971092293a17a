"""Lists of web addresses, fetched from servers that work and from servers that fail or attack."""

from __future__ import annotations

import email.utils
import gzip
import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from yarl import URL

from library.errors import BadPicture, StriateError, UsageError
from library.sources import LinkLimits, Options, allowed_hosts, extras_of, list_source
from library.sources.links import fetch, redirected
from tests.link_server import Answer, LinkServer, bomb, drip, endless, redirect, reply, reset, silence
from tests.source_examples import picture, read_all, rows

#: The tests' server has a private address, so it must be allowed.
LIMITS = LinkLimits(retries=2, timeout_s=5, backoff_s=0.001, max_bytes=2**20, allowed=("127.0.0.1",))
PICTURE = picture(1)


@pytest.fixture
def server() -> Iterator[LinkServer]:
    with LinkServer() as server:
        yield server


def _one(url: str, limits: LinkLimits = LIMITS) -> bytes | BadPicture:
    (result,) = fetch([url], limits)
    return result


def _refused(url: str, limits: LinkLimits = LIMITS) -> BadPicture:
    result = _one(url, limits)
    assert isinstance(result, BadPicture)
    return result


def _list(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_csv_of_links_has_labels_keys_and_columns(server: LinkServer, tmp_path: Path) -> None:
    (tmp_path / "here.jpg").write_bytes(picture(3))
    a, b = server.add("/a.jpg?size=1", reply(PICTURE)), server.add("/b.jpg", reply(picture(2)))
    lines = [
        "url,label,year",
        f"{a},cat,2001",
        f"{b},dog,2002",
        "here.jpg,dog,2003",
        f"{server.url('/c.jpg')},cat,2004",
    ]
    listing = list_source(_list(tmp_path, "links.csv", "\n".join(lines)), Options(links=LIMITS))
    assert server.requests.total() == 0  # listing fetches nothing
    results = read_all(listing, Options(links=LIMITS))
    assert {key: read.data for key, read in results.items()} == {
        a: PICTURE,
        b: picture(2),
        "here.jpg": picture(3),
        server.url("/c.jpg"): None,
    }
    assert {key: row["label"] for key, row in rows(listing).items()}[b] == "dog"
    assert sorted(extras_of(listing.index).column("year").to_pylist()) == [2001, 2002, 2003, 2004]
    problem = results[server.url("/c.jpg")].problem
    assert problem is not None
    assert (problem.reason, problem.detail) == ("http_404", f"{server.url('/c.jpg')}: the server answered 404")


@pytest.mark.parametrize("name", ["links.txt", "links.jsonl", "links.tsv"])
def test_a_list_of_links_can_be_text_json_lines_or_tsv(server: LinkServer, tmp_path: Path, name: str) -> None:
    urls = [server.add(f"/{number}.jpg", reply(picture(number))) for number in range(3)]
    lines = {
        "links.txt": ["", *urls, ""],
        "links.jsonl": [json.dumps({"image_url": url}) for url in urls],
        "links.tsv": ["id\tlink", *(f"{number}\t{url}" for number, url in enumerate(urls))],
    }[name]
    listing = list_source(_list(tmp_path, name, "\n".join(lines)), Options(links=LIMITS))
    assert {key: read.data for key, read in read_all(listing, Options(links=LIMITS)).items()} == {
        url: picture(number) for number, url in enumerate(urls)
    }


def test_a_file_of_notes_is_not_a_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of an unsupported type"):
        list_source(_list(tmp_path, "notes.txt", "see https://example.org"))


def test_limits_for_links_are_refused_without_links(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    with pytest.raises(UsageError, match=r"--link.* have no effect: .* has no web addresses"):
        list_source(_list(tmp_path, "paths.csv", "path\na.jpg\n"), Options(links=LIMITS))


def test_a_repeated_link_is_an_error_unless_a_column_has_unique_keys(tmp_path: Path) -> None:
    text = "url,id\nhttps://example.org/a.jpg,x\nhttps://example.org/a.jpg,y\n"
    with pytest.raises(StriateError, match=r"rows 1 and 2 have the same key 'https://example\.org/a\.jpg'"):
        list_source(_list(tmp_path, "l.csv", text))
    assert set(rows(list_source(_list(tmp_path, "l.csv", text), Options(key_column="id")))) == {"x", "y"}


def test_a_password_in_a_link_goes_only_to_its_server(server: LinkServer, tmp_path: Path) -> None:
    server.add("/a.jpg", redirect(server.url("/b.jpg")))
    server.add("/b.jpg", reply(b"", status=403))
    url = server.url("/a.jpg").replace("://", "://user:secret@")
    listing = list_source(_list(tmp_path, "l.txt", url), Options(links=LIMITS))
    ((key, read),) = read_all(listing, Options(links=LIMITS)).items()
    assert key == server.url("/a.jpg")
    assert read.problem is not None
    assert "secret" not in f"{read.problem} {key}"
    assert "Authorization: Basic" in server.heads["/a.jpg"][0]
    assert "Authorization" not in server.heads["/b.jpg"][0]


def test_a_request_names_striate_and_asks_for_no_compression(server: LinkServer) -> None:
    assert _one(server.add("/a", reply(PICTURE))) == PICTURE
    (head,) = server.heads["/a"]
    assert "User-Agent: Striate/" in head
    assert "Accept-Encoding: identity" in head
    assert "Cookie" not in head


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "http_404"), (410, "http_410"), (403, "http_403"), (418, "http_error")]
)
def test_a_final_answer_is_not_requested_again(server: LinkServer, status: int, reason: str) -> None:
    bad = _refused(server.add("/a", reply(b"no", status=status)))
    assert (bad.reason, bad.detail) == (reason, f"{server.url('/a')}: the server answered {status}")
    assert server.requests["/a"] == 1


@pytest.mark.parametrize(
    "first",
    [reply(b"", status=500), reply(b"", status=503), reset, reply(PICTURE[:50], length=len(PICTURE))],
    ids=["500", "503", "reset", "truncated"],
)
def test_a_temporary_failure_is_tried_again(server: LinkServer, first: bytes) -> None:
    assert _one(server.add("/a", first, reply(PICTURE))) == PICTURE
    assert server.requests["/a"] == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"", status=500), "http_error"),
        (reply(b"", status=429), "http_429"),
        (reset, "unreachable"),
        (reply(PICTURE[:50], length=len(PICTURE)), "truncated"),
    ],
    ids=["500", "429", "reset", "truncated"],
)
def test_a_lasting_failure_is_a_reject_after_its_retries(server: LinkServer, answer: bytes, reason: str) -> None:
    assert _refused(server.add("/a", answer)).reason == reason
    # aiohttp itself tries once more if a connection is closed before an answer.
    assert server.requests["/a"] // (2 if answer is reset else 1) == LIMITS.retries + 1


def test_every_request_to_a_host_waits_for_its_retry_after(server: LinkServer) -> None:
    begun = time.monotonic()
    busy = server.add("/busy", reply(b"", "Retry-After: 0.05", status=429), reply(PICTURE))
    other = server.add("/other", reply(PICTURE))
    limits = replace(LIMITS, per_host=1)
    assert list(fetch([busy, other], limits)) == [PICTURE, PICTURE]
    assert time.monotonic() - begun >= 0.05
    assert (server.requests["/busy"], server.requests["/other"]) == (2, 1)


@pytest.mark.parametrize(
    "when", ["3600", email.utils.formatdate(time.time() + 3600, usegmt=True)], ids=["in seconds", "as a date"]
)
def test_a_server_that_asks_for_a_long_wait_is_not_asked_again(server: LinkServer, when: str) -> None:
    bad = _refused(server.add("/a", reply(b"", f"Retry-After: {when}", status=429)))
    assert bad.detail.endswith("the server answered 429 and asks to wait longer than 60 s")
    assert server.requests["/a"] == 1


def test_simultaneous_requests_stay_within_both_limits(server: LinkServer) -> None:
    urls = [server.add(f"/{number}", reply(picture(number))) for number in range(40)]
    results = list(fetch(urls, replace(LIMITS, per_host=3)))
    assert results == [picture(number) for number in range(40)]
    assert server.most <= 3
    server.most = 0
    hosts = [url.replace("127.0.0.1", f"127.0.0.{number % 8 + 1}") for number, url in enumerate(urls)]
    assert list(fetch(hosts, replace(LIMITS, connections=2, allowed=("127.0.0.0/8",)))) == results
    assert server.most <= 2


def test_workers_share_the_limits() -> None:
    shares = [LinkLimits(connections=32, per_host=4).share(workers) for workers in (1, 3, 4)]
    assert [(share.connections, share.per_host) for share in shares] == [(32, 4), (10, 1), (8, 1)]


@pytest.mark.parametrize("answer", [silence, drip], ids=["silent", "dripping"])
def test_a_slow_server_is_timed_out(server: LinkServer, answer: bytes) -> None:
    limits = replace(LIMITS, retries=0, timeout_s=0.2, idle_timeout_s=0.1)
    assert _refused(server.add("/a", answer), limits).reason == "timed_out"


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"", length=2**30),
        endless,
        bomb(300 * 2**20, PICTURE),
        reply(PICTURE + bytes(2**21)),
    ],
    ids=["says so", "endless", "gzip bomb", "really"],
)
def test_a_body_too_large_is_refused_before_it_fills_memory(server: LinkServer, answer: bytes) -> None:
    url = server.add("/a", answer)
    tracemalloc.start()
    try:
        assert _refused(url).reason == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_bytes_after_the_declared_length_are_not_read(server: LinkServer) -> None:
    results = _one(server.add("/a", reply(PICTURE + b"more", length=len(PICTURE))))
    # Whether the rest arrives together with the picture depends on the network.
    assert results == PICTURE or (isinstance(results, BadPicture) and results.reason == "http_error")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(gzip.compress(PICTURE), "Content-Encoding: gzip"), None),
        (reply(gzip.compress(PICTURE)[:-9], "Content-Encoding: gzip"), "truncated"),
        (reply(PICTURE, "Content-Encoding: gzip"), "http_error"),
        (reply(PICTURE, "Content-Encoding: br"), "http_error"),
    ],
    ids=["gzip", "half of it", "not gzip", "another"],
)
def test_a_compressed_body_is_unpacked(server: LinkServer, answer: bytes, reason: str | None) -> None:
    results = _one(server.add("/a", answer))
    assert results == PICTURE if reason is None else isinstance(results, BadPicture) and results.reason == reason


@pytest.mark.parametrize("length", [20, 5000])
def test_a_web_page_instead_of_a_picture_is_a_reject(server: LinkServer, length: int) -> None:
    bad = _refused(server.add("/a", reply(b"<!DOCTYPE html>" + b" " * length, kind="text/html; charset=utf-8")))
    assert bad.reason == "not_an_image"
    assert bad.detail.startswith(
        f"{server.url('/a')}: the server sent text/html, which begins with b'<!DOCTYPE html> '"
    )


def test_a_picture_with_a_wrong_content_type_is_read(server: LinkServer) -> None:
    assert _one(server.add("/a", reply(PICTURE, kind="text/html"))) == PICTURE


def test_an_answer_that_is_not_http_is_a_reject(server: LinkServer) -> None:
    assert _refused(server.add("/a", b"220 mail.example.org ESMTP\r\n\r\n")).reason == "http_error"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: LinkServer, status: int) -> None:
    server.add("/deep/b.jpg", reply(PICTURE))
    assert _one(server.add("/a", redirect("deep/b.jpg", status))) == PICTURE


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/a", "too_many_redirects"),
        ("file:///etc/passwd", "bad_redirect"),
        ("ftp://127.0.0.1/x", "bad_redirect"),
        ("http://[::1", "bad_url"),
        ("http://127.0.0.2:{port}/x", "private_address"),
        ("http://localhost.:{port}/x", "private_address"),
        ("http://[::1]:{port}/x", "private_address"),
        ("http://[::ffff:127.0.0.2]:{port}/x", "private_address"),
        ("http://169.254.169.254/latest/meta-data/", "private_address"),
    ],
)
def test_a_redirect_cannot_lead_to_a_forbidden_place(server: LinkServer, target: str, reason: str) -> None:
    limits = replace(LIMITS, allowed=("127.0.0.1",), retries=0)
    if "localhost" in target:
        limits = replace(limits, allowed=())
        url = server.add("/a", redirect(target)).replace("127.0.0.1", "localhost")
        assert _refused(url, limits).reason == reason
        return
    url = server.add("/a", redirect(target.format(port=server.server_address[1])))
    server.add("/x", reply(PICTURE))
    assert _refused(url, limits).reason == reason
    assert server.requests["/x"] == 0


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://a/x/y?q", "z", "https://a/x/z"),
        ("https://a/x", "//b/z", "https://b/z"),
        ("http://a/x", "https://user:secret@b/", "https://b/"),
        ("https://a/x", "http://a/x", "bad_redirect"),
        ("https://a/x", "HTTP://a/x", "bad_redirect"),
        ("https://a/x", "data:image/png;base64,AAAA", "bad_redirect"),
        ("https://a/x", "https://[::1", "bad_url"),
    ],
)
def test_a_redirect_keeps_encryption_and_drops_the_user(url: str, location: str, target: str) -> None:
    if target.startswith("bad_"):
        with pytest.raises(BadPicture, match=target):
            redirected(URL(url), location)
    else:
        assert redirected(URL(url), location) == URL(target)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:7f00:1]",
    ],
)
def test_this_machine_is_not_fetched_from_under_any_address(server: LinkServer, host: str) -> None:
    server.add("/a", reply(PICTURE))
    bad = _refused(server.url("/a", host), replace(LIMITS, allowed=(), retries=0))
    assert bad.reason in ("private_address", "bad_url")
    assert server.requests["/a"] == 0


def test_a_name_that_changes_to_a_private_address_is_not_connected_to(
    server: LinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's address is checked, so a name server that changes its answer gains nothing."""
    with pytest.raises(BadPicture, match="private_address"):
        allowed_hosts.guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 80)), ())
    monkeypatch.setattr(
        "library.sources.links._PublicResolver", lambda allowed: None
    )  # aiohttp's own resolver, without checks
    server.add("/a", reply(PICTURE))
    bad = _refused(server.url("/a", "localhost"), replace(LIMITS, allowed=(), retries=0))
    assert bad.reason == "private_address"
    assert server.requests["/a"] == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((text, True) for text in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1")),
        *((text, False) for text in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.9.9.9", "0.0.0.0", "100.64.0.1")),
        *((text, False) for text in ("169.254.169.254", "168.63.129.16", "192.0.0.192", "100.100.100.200")),
        *((text, False) for text in ("224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1")),
        *((text, False) for text in ("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1")),
        *((text, False) for text in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::1", "2001::1", "::127.0.0.1")),
    ],
)
def test_only_public_addresses_are_connected_to(address: str, public: bool) -> None:
    if public:
        allowed_hosts.check(ip_address(address), ())
        return
    with pytest.raises(BadPicture, match="private_address"):
        allowed_hosts.check(ip_address(address), ())


def test_only_allowed_private_networks_are_connected_to() -> None:
    allowed = allowed_hosts.parse_networks(["10.1.0.0/16", "fd00::/8"])
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        allowed_hosts.check(ip_address(text), allowed)
    with pytest.raises(BadPicture):
        allowed_hosts.check(ip_address("10.2.0.1"), allowed)


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a:99999/x", f"http://{'a' * 64}.example/x"])
def test_an_invalid_link_is_a_reject(url: str) -> None:
    assert _refused(url, replace(LIMITS, retries=0)).reason == "bad_url"


def test_proxies_from_the_environment_are_not_used(server: LinkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url("/proxy"))
    assert _one(server.add("/a", reply(PICTURE))) == PICTURE
    assert server.heads["/a"][0].startswith("GET /a ")


def test_a_network_that_is_down_is_an_error_not_a_shard_of_rejects(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{closed.getsockname()[1]}/{number}" for number in range(20)]
        options = Options(links=replace(LIMITS, retries=0))
        with pytest.raises(StriateError, match="none of 20 links could be reached"):
            read_all(list_source(_list(tmp_path, "l.txt", "\n".join(urls)), options), options)


@pytest.mark.parametrize(
    ("answer", "reason"), [(reset, "unreachable"), (reply(b"", status=429), "http_429")], ids=["reset", "429"]
)
def test_a_host_that_always_fails_is_given_up(server: LinkServer, answer: Answer, reason: str) -> None:
    urls = [server.add(f"/{number}", answer) for number in range(40)]
    results = list(fetch(urls, replace(LIMITS, retries=0, per_host=1)))
    assert [each.reason for each in results if isinstance(each, BadPicture)] == [reason] * 40
    assert len(server.requests) == 16


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"per_host": 0}, "--links-per-host 0: must be at least 1"),
        ({"retries": -1}, "--link-retries -1: must be at least 0"),
        ({"timeout_s": 0.0}, "--link-timeout-s 0: must be above 0"),
        ({"max_bytes": 2**40}, "--link-max-mb 1.04858e\\+06: must be above 0 and at most 512"),
        ({"allowed": ("example.org",)}, "--allow-address: 'example.org' does not appear to be"),
    ],
)
def test_invalid_limits_are_refused(limits: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LinkLimits(**limits)  # type: ignore[arg-type]
