"""Pictures at web addresses: fetched by few connections a host, with retries, and within limits of size and time.

Nothing that a server does ends a job: what cannot be fetched is a reject with its reason. A server decides neither
where else this machine connects to (`library/sources/allowed_hosts.py`) nor how much it holds in memory.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import socket
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import Any

import aiohttp
import pyarrow as pa
from aiohttp.abc import AbstractResolver
from yarl import URL

from library.dataset.manifest import VERSIONS
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.sources import allowed_hosts
from library.sources.archives import members
from library.sources.index import LinkLimits, Options, Read
from library.sources.tables.lists import is_link, without_user

_HEADERS = {
    "User-Agent": f"Striate/{VERSIONS['striate']}",
    "Accept": "image/*, */*;q=0.1",
    "Accept-Encoding": "identity",
}
_CHUNK_BYTES = 2**16
#: Enough for every format's first bytes: what is none of them is not read to its end.
_HEAD_BYTES = 512
#: What was fetched and not yet stored; beyond it no other download begins.
_HELD_BYTES = 64 * 2**20
#: A few dead links are rejects. Where so many of one shard and no other answer, the network is down: that is an error.
_OUTAGE_LINKS = 8
_NO_NETWORK = ("unreachable", "timed_out")
#: A host that failed so often in a row, each time after all attempts, is not asked again for the same shard.
_GIVEN_UP_AFTER = 16
_GIVEN_UP_FOR = (*_NO_NETWORK, "http_429")
_REDIRECTS = (301, 302, 303, 307, 308)
#: Statuses that have a reason of their own; every other is `http_error`.
_TOLD = (403, 404, 410, 429)
#: An answer that may be another one later.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NUMBER = re.compile(r"\d{1,9}(\.\d*)?")


def read_links(rows: pa.Table, hints: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """The pictures of a list that names web addresses, and maybe files too; links in the order of their rows.

    Raises:
        StriateError: where no link of many can be reached at all.
    """
    uris: list[str] = rows.column("uri").to_pylist()
    linked = [row for row, uri in enumerate(uris) if is_link(uri)]
    files = [row for row, uri in enumerate(uris) if not is_link(uri)]
    for read in members.read_files(rows.take(pa.array(files, pa.int64())), hints, options):
        yield replace(read, row=files[read.row])
    lost = 0
    for row, found in zip(linked, fetched([uris[row] for row in linked], options.links), strict=True):
        if isinstance(found, BadPicture):
            lost += found.reason in _NO_NETWORK
            yield Read(row, None, found)
        else:
            yield Read(row, found)
    if lost == len(linked) >= _OUTAGE_LINKS:
        raise StriateError(
            f"none of {lost} links could be reached, {without_user(uris[linked[0]])} among them; is there a network? "
            "Run the same command again once there is one: what is done stays"
        )


def fetched(urls: Sequence[str], limits: LinkLimits) -> Iterator[bytes | BadPicture]:
    """Fetch each address; what comes is in the order asked.

    At most `limits.connections` bodies of `limits.max_bytes` are held, read or waiting to be taken; none is begun while
    64 MB wait.
    """
    with _loop() as loop:
        fetcher = asyncio.run_coroutine_threadsafe(_opened(limits), loop).result()
        pending: deque[Future[bytes | BadPicture]] = deque()
        waiting = deque(urls)
        try:
            while waiting or pending:
                while waiting and len(pending) < limits.connections and _held(pending) < _HELD_BYTES:
                    pending.append(asyncio.run_coroutine_threadsafe(fetcher.fetch(waiting.popleft()), loop))
                yield pending.popleft().result()
        finally:
            asyncio.run_coroutine_threadsafe(fetcher.close(), loop).result()


def _held(pending: deque[Future[bytes | BadPicture]]) -> int:
    done = (future.result() for future in pending if future.done() and future.exception() is None)
    return sum(len(found) for found in done if isinstance(found, bytes))


@contextmanager
def _loop() -> Generator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, so that downloads go on and no time limit runs out while pictures are
    being stored."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="links", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Again(Exception):
    """A failure that may pass.

    Args:
        bad: the reject, should it not.
        wait_s: how long the server asks to be left alone; None where it does not say.
    """

    def __init__(self, bad: BadPicture, wait_s: float | None = None) -> None:
        super().__init__(str(bad))
        self.bad, self.wait_s = bad, wait_s


class _Host:
    """How many requests a host gets at once, from when on (`time.monotonic`) it may be asked again, and why the last
    ones failed."""

    def __init__(self, slots: int) -> None:
        self.slots = asyncio.Semaphore(slots)
        self.free_at = 0.0
        self.failures: list[str] = []

    async def free(self) -> None:
        while (wait_s := self.free_at - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


async def _opened(limits: LinkLimits) -> _Fetcher:
    return _Fetcher(limits)


class _Fetcher:
    """One HTTP session and the state of its hosts; made and used in the event loop."""

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._allowed = allowed_hosts.parse_networks(limits.allowed)
        self._hosts: dict[str, _Host] = {}
        self._slots = asyncio.Semaphore(limits.connections)
        connector = aiohttp.TCPConnector(
            limit=0,  # ours count
            resolver=_PublicResolver(self._allowed),
            socket_factory=lambda info: allowed_hosts.guarded_socket(info, self._allowed),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            auto_decompress=False,  # a small body may unpack to a huge one
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would connect to addresses that nobody checks
            timeout=aiohttp.ClientTimeout(
                total=limits.timeout_s, sock_connect=limits.connect_timeout_s, sock_read=limits.idle_timeout_s
            ),
        )

    async def close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def fetch(self, address: str) -> bytes | BadPicture:
        try:
            url = _parsed(address)
            host = self._host(url)
            try:
                found = await self._tried(url)
            except BadPicture as bad:
                host.failures = [*host.failures, bad.reason] if bad.reason in _GIVEN_UP_FOR else []
                raise
            host.failures = []
            return found
        except BadPicture as bad:
            return BadPicture(bad.reason, f"{without_user(address)}: {bad.detail}")

    async def _tried(self, url: URL) -> bytes:
        """The body, after as many attempts as it takes and the limits allow."""
        attempt = 0
        while True:
            try:
                return await self._follow(url)
            except _Again as again:
                wait_s = self._limits.backoff_s * 2**attempt if again.wait_s is None else again.wait_s
                if attempt == self._limits.retries or wait_s > self._limits.max_wait_s:
                    raise again.bad from again
                if again.wait_s is None:
                    await asyncio.sleep(wait_s)
            attempt += 1

    async def _follow(self, url: URL) -> bytes:
        """The body at the end of the redirects."""
        for _ in range(self._limits.max_redirects + 1):
            found = await self._ask(url)
            if isinstance(found, bytes):
                return found
            url = redirected(url, found)
        raise BadPicture("too_many_redirects", f"more than {self._limits.max_redirects} redirects")

    def _host(self, url: URL) -> _Host:
        return self._hosts.setdefault(str(url.host), _Host(self._limits.per_host))

    async def _ask(self, url: URL) -> bytes | str:
        """One request: the body, or where it redirects to."""
        known = allowed_hosts.literal(url.host or "")
        if known is not None:
            allowed_hosts.check(known, self._allowed)
        host = self._host(url)
        async with host.slots:
            if len(host.failures) >= _GIVEN_UP_AFTER:
                times = f"its host failed {_GIVEN_UP_AFTER} times in a row and is not asked again for this shard"
                raise BadPicture(host.failures[-1], times)
            await host.free()
            async with self._slots:
                try:
                    return await self._answer(url)
                except _Again as again:
                    if again.wait_s is not None and again.wait_s <= self._limits.max_wait_s:
                        host.free_at = max(host.free_at, time.monotonic() + again.wait_s)
                    raise
                except (aiohttp.ClientError, OSError, UnicodeError) as error:  # a timeout is an OSError
                    raise _failure(error, self._limits) from error

    async def _answer(self, url: URL) -> bytes | str:
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status in _REDIRECTS and "Location" in response.headers:
                return response.headers["Location"]
            if response.status != 200:
                raise _refusal(response, self._limits)
            if (response.content_length or 0) > self._limits.max_bytes:
                raise self._too_large()
            return await self._body(response)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise BadPicture("http_error", f"it is sent in the encoding {encoding!r}, which is not read")
        unpack = (
            None if encoding in ("", "identity") else zlib.decompressobj(wbits=47)
        )  # gzip or zlib, as its head says
        data = bytearray()
        judged = False
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            while chunk:
                if unpack is None:
                    data += chunk
                    chunk = b""
                else:
                    data += _unpacked(unpack, chunk, self._limits.max_bytes + 1 - len(data))
                    chunk = unpack.unconsumed_tail
                if len(data) > self._limits.max_bytes:
                    raise self._too_large()
            if unpack is not None and unpack.eof:
                break  # what stands behind it is not the picture's
            if not judged and len(data) >= _HEAD_BYTES:
                judged = True
                _check_picture(data, response)
        if unpack is not None and not unpack.eof:
            raise _Again(BadPicture("truncated", "the body ends before its compression does"))
        if not judged and data:
            _check_picture(data, response)
        return bytes(data)

    def _too_large(self) -> BadPicture:
        return BadPicture("too_large", f"more than {self._limits.max_bytes:,} bytes (--link-max-mb)")


class _PublicResolver(AbstractResolver):
    """Names to addresses, less those that may not be connected to."""

    def __init__(self, allowed: Sequence[allowed_hosts.Network]) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        found = await self._resolver.resolve(host, port, family)
        public: list[Any] = []
        refused: BadPicture | None = None
        for each in found:
            try:
                address = allowed_hosts.literal(each["host"])
                assert address is not None
                allowed_hosts.check(address, self._allowed)
                public.append(each)
            except BadPicture as bad:
                refused = bad
        if refused is not None and not public:
            raise refused
        return public

    async def close(self) -> None:
        await self._resolver.close()


def redirected(url: URL, location: str) -> URL:
    """Where an answer from `url` leads. A user's name in it is left out: no server chooses who we are elsewhere.

    Raises:
        BadPicture: `bad_redirect` to another scheme, or from https to http; `bad_url`.
    """
    target = _parsed(location, base=url).with_user(None)
    if url.scheme == "https" and target.scheme == "http":
        raise BadPicture("bad_redirect", "it redirects from https to http")
    return target


def _parsed(address: str, base: URL | None = None) -> URL:
    try:
        url = URL(address) if base is None else base.join(URL(address))
        valid = bool(url.host) and url.port is not None
    except ValueError:
        valid, url = False, URL()
    if url.scheme not in ("http", "https", ""):
        raise BadPicture("bad_redirect", f"it redirects to {url.scheme}://, and only http:// and https:// are followed")
    if not valid:
        raise BadPicture(
            "bad_url", "the address is not valid" if base is None else "it redirects to an invalid address"
        )
    return url


def _refusal(response: aiohttp.ClientResponse, limits: LinkLimits) -> Exception:
    status = response.status
    reason = f"http_{status}" if status in _TOLD else "http_error"
    detail = f"the server answered {status}"
    if status not in _PASSING:
        return BadPicture(reason, detail)
    wait_s = _retry_after_s(response.headers.get("Retry-After"))
    if wait_s is not None and wait_s > limits.max_wait_s:
        detail += f" and asks to wait longer than {limits.max_wait_s:g} s"
    return _Again(BadPicture(reason, detail), wait_s)


def _retry_after_s(text: str | None) -> float | None:
    """Seconds, from a number of them or a date; None where there is neither."""
    if text is None:
        return None
    try:
        return max(0.0, float(text)) if _NUMBER.fullmatch(text.strip()) else _seconds_until(text)
    except (ValueError, OverflowError):
        return None


def _seconds_until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def _failure(error: Exception, limits: LinkLimits) -> Exception:
    """What is told says nothing that differs from one run to the next: which address, how long."""
    if isinstance(error, TimeoutError):
        return _Again(
            BadPicture(
                "timed_out",
                f"not whole within {limits.timeout_s:g} s, not connected within {limits.connect_timeout_s:g} s, or "
                f"nothing came for {limits.idle_timeout_s:g} s",
            )
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Again(BadPicture("truncated", "the connection ended before the body did"))
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):  # a label of more than 63 characters
        return BadPicture("bad_url", "the address is not valid")
    if isinstance(error, aiohttp.ClientSSLError):
        return BadPicture("unreachable", "its certificate is not valid, or it does not speak TLS")
    if isinstance(error, aiohttp.ClientResponseError):
        return BadPicture("http_error", "the answer is not HTTP")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        bad = BadPicture("unreachable", "its name has no address")
        return bad if error.os_error.errno == socket.EAI_NONAME else _Again(bad)
    return _Again(BadPicture("unreachable", "no connection, or it was closed before an answer"))


def _check_picture(data: bytearray, response: aiohttp.ClientResponse) -> None:
    head = bytes(data[:_HEAD_BYTES])
    if codec.sniff(head) is None:
        raise BadPicture("not_an_image", f"the server sent {response.content_type}, which begins with {head[:16]!r}")


def _unpacked(unpack: Any, chunk: bytes, room: int) -> bytes:
    try:
        return unpack.decompress(chunk, room)
    except zlib.error as error:
        raise BadPicture("http_error", "the body is not compressed as its head says") from error
