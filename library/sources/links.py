"""Fetches pictures from web addresses, with few connections per host, retries, and limits of size and time.

No server can end a job: a picture that cannot be fetched is a reject with its reason. Nor can a server decide where
else this machine connects to (`library/sources/allowed_hosts.py`) or how much memory it uses.
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
from library.sources.archives import reading
from library.sources.listing import LinkLimits, Options, Read
from library.sources.tables.lists import is_link, without_user

_HEADERS = {
    "User-Agent": f"Striate/{VERSIONS['striate']}",
    "Accept": "image/*, */*;q=0.1",
    "Accept-Encoding": "identity",
}
_CHUNK_BYTES = 2**16
#: Bytes after which the format is checked: a body that is not a picture is not read to its end.
_HEAD_BYTES = 512
#: While more fetched bytes than this wait to be stored, no other download starts.
_MAX_WAITING_BYTES = 64 * 2**20
#: Dead links are rejects, but if all links of a shard fail, and at least this many, the network is down: an error.
_OUTAGE_LINKS = 8
_NO_NETWORK = ("unreachable", "timed_out")
#: A host that failed this often in a row, each time after all attempts, gets no more requests for the same shard.
_GIVE_UP_AFTER = 16
_GIVE_UP_REASONS = (*_NO_NETWORK, "http_429")
_REDIRECTS = (301, 302, 303, 307, 308)
#: Statuses with a reason of their own; every other is `http_error`.
_NAMED_STATUSES = (403, 404, 410, 429)
#: Statuses that may be temporary.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_NUMBER = re.compile(r"\d{1,9}(\.\d*)?")


def read_links(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads the pictures of a list with web addresses: first those in files, then the links in the order of their rows.

    Raises:
        StriateError: none of many links can be reached.
    """
    uris: list[str] = rows.column("uri").to_pylist()
    linked = [row for row, uri in enumerate(uris) if is_link(uri)]
    files = [row for row, uri in enumerate(uris) if not is_link(uri)]
    for read in reading.read_files(rows.take(pa.array(files, pa.int64())), gzip_indexes, options):
        yield replace(read, row=files[read.row])
    unreachable = 0
    for row, fetched in zip(linked, fetch([uris[row] for row in linked], options.links), strict=True):
        if isinstance(fetched, BadPicture):
            unreachable += fetched.reason in _NO_NETWORK
            yield Read(row, None, fetched)
        else:
            yield Read(row, fetched)
    if unreachable == len(linked) >= _OUTAGE_LINKS:
        raise StriateError(
            f"none of {unreachable} links could be reached, for example {without_user(uris[linked[0]])}; check the "
            "network and run the same command again: finished shards are kept"
        )


def fetch(urls: Sequence[str], limits: LinkLimits) -> Iterator[bytes | BadPicture]:
    """Fetches addresses; yields the content of each, or its problem, in the same order.

    Holds at most `limits.connections` bodies of `limits.max_bytes`; starts no download while 64 MB wait to be taken.
    """
    with _loop() as loop:
        fetcher = asyncio.run_coroutine_threadsafe(_opened(limits), loop).result()
        pending: deque[Future[bytes | BadPicture]] = deque()
        waiting = deque(urls)
        try:
            while waiting or pending:
                while waiting and len(pending) < limits.connections and _waiting_bytes(pending) < _MAX_WAITING_BYTES:
                    pending.append(asyncio.run_coroutine_threadsafe(fetcher.fetch(waiting.popleft()), loop))
                yield pending.popleft().result()
        finally:
            asyncio.run_coroutine_threadsafe(fetcher.close(), loop).result()


def _waiting_bytes(pending: deque[Future[bytes | BadPicture]]) -> int:
    done = (future.result() for future in pending if future.done() and future.exception() is None)
    return sum(len(body) for body in done if isinstance(body, bytes))


@contextmanager
def _loop() -> Generator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, so that downloads continue while pictures are stored."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="links", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Temporary(Exception):
    """A failure that may be temporary.

    Args:
        bad: the problem to report if it is not.
        wait_s: how long the server asks to wait, in seconds; None if it does not.
    """

    def __init__(self, bad: BadPicture, wait_s: float | None = None) -> None:
        super().__init__(str(bad))
        self.bad, self.wait_s = bad, wait_s


class _Host:
    """A host: its slots for requests, the time (`time.monotonic`) before which it gets none, and its last failures."""

    def __init__(self, slots: int) -> None:
        self.slots = asyncio.Semaphore(slots)
        self.free_at = 0.0
        self.failures: list[str] = []

    async def wait_until_free(self) -> None:
        while (wait_s := self.free_at - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


async def _opened(limits: LinkLimits) -> _Fetcher:
    return _Fetcher(limits)


class _Fetcher:
    """One HTTP session and the state of its hosts; created and used in the event loop."""

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._allowed = allowed_hosts.parse_networks(limits.allowed)
        self._hosts: dict[str, _Host] = {}
        self._slots = asyncio.Semaphore(limits.connections)
        connector = aiohttp.TCPConnector(
            limit=0,  # the semaphores limit connections
            resolver=_PublicResolver(self._allowed),
            socket_factory=lambda info: allowed_hosts.guarded_socket(info, self._allowed),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            auto_decompress=False,  # because a small body may unpack to a huge one
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # because a proxy would connect to unchecked addresses
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
                body = await self._with_retries(url)
            except BadPicture as bad:
                host.failures = [*host.failures, bad.reason] if bad.reason in _GIVE_UP_REASONS else []
                raise
            host.failures = []
            return body
        except BadPicture as bad:
            return BadPicture(bad.reason, f"{without_user(address)}: {bad.detail}")

    async def _with_retries(self, url: URL) -> bytes:
        """The body, after as many attempts as needed and allowed."""
        attempt = 0
        while True:
            try:
                return await self._follow(url)
            except _Temporary as failure:
                wait_s = self._limits.backoff_s * 2**attempt if failure.wait_s is None else failure.wait_s
                if attempt == self._limits.retries or wait_s > self._limits.max_wait_s:
                    raise failure.bad from failure
                if failure.wait_s is None:
                    await asyncio.sleep(wait_s)
            attempt += 1

    async def _follow(self, url: URL) -> bytes:
        """The body after following redirects."""
        for _ in range(self._limits.max_redirects + 1):
            answer = await self._request(url)
            if isinstance(answer, bytes):
                return answer
            url = redirected(url, answer)
        raise BadPicture("too_many_redirects", f"more than {self._limits.max_redirects} redirects")

    def _host(self, url: URL) -> _Host:
        return self._hosts.setdefault(str(url.host), _Host(self._limits.per_host))

    async def _request(self, url: URL) -> bytes | str:
        """Makes one request; returns the body, or the target of a redirect."""
        address = allowed_hosts.literal(url.host or "")
        if address is not None:
            allowed_hosts.check(address, self._allowed)
        host = self._host(url)
        async with host.slots:
            if len(host.failures) >= _GIVE_UP_AFTER:
                detail = f"its host failed {_GIVE_UP_AFTER} times in a row and is not asked again for this shard"
                raise BadPicture(host.failures[-1], detail)
            await host.wait_until_free()
            async with self._slots:
                try:
                    return await self._answer(url)
                except _Temporary as failure:
                    if failure.wait_s is not None and failure.wait_s <= self._limits.max_wait_s:
                        host.free_at = max(host.free_at, time.monotonic() + failure.wait_s)
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
            raise BadPicture("http_error", f"it is sent in the encoding {encoding!r}, which is not supported")
        unpack = (
            None if encoding in ("", "identity") else zlib.decompressobj(wbits=47)
        )  # gzip or zlib, as its head says
        data = bytearray()
        checked = False
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
                break  # bytes after the compressed body are not part of the picture
            if not checked and len(data) >= _HEAD_BYTES:
                checked = True
                _check_picture(data, response)
        if unpack is not None and not unpack.eof:
            raise _Temporary(BadPicture("truncated", "the body ends before its compression does"))
        if not checked and data:
            _check_picture(data, response)
        return bytes(data)

    def _too_large(self) -> BadPicture:
        return BadPicture("too_large", f"more than {self._limits.max_bytes:,} bytes (--link-max-mb)")


class _PublicResolver(AbstractResolver):
    """Resolves names to addresses, without those that may not be connected to."""

    def __init__(self, allowed: Sequence[allowed_hosts.Network]) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        resolved = await self._resolver.resolve(host, port, family)
        public: list[Any] = []
        refused: BadPicture | None = None
        for each in resolved:
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
    """The target of a redirect from `url`, without a user name: a server must not choose our user elsewhere.

    Raises:
        BadPicture: `bad_redirect` for a target that is not http or https, or from https to http; `bad_url`.
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
        raise BadPicture("bad_redirect", f"it redirects to {url.scheme}://, but only http:// and https:// are followed")
    if not valid:
        raise BadPicture(
            "bad_url", "the address is not valid" if base is None else "it redirects to an invalid address"
        )
    return url


def _refusal(response: aiohttp.ClientResponse, limits: LinkLimits) -> Exception:
    status = response.status
    reason = f"http_{status}" if status in _NAMED_STATUSES else "http_error"
    detail = f"the server answered {status}"
    if status not in _TEMPORARY:
        return BadPicture(reason, detail)
    wait_s = _retry_after_s(response.headers.get("Retry-After"))
    if wait_s is not None and wait_s > limits.max_wait_s:
        detail += f" and asks to wait longer than {limits.max_wait_s:g} s"
    return _Temporary(BadPicture(reason, detail), wait_s)


def _retry_after_s(text: str | None) -> float | None:
    """Seconds to wait, from a number or a date; None if the header is missing or invalid."""
    if text is None:
        return None
    try:
        return max(0.0, float(text)) if _NUMBER.fullmatch(text.strip()) else _seconds_until(text)
    except (ValueError, OverflowError):
        return None


def _seconds_until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def _failure(error: Exception, limits: LinkLimits) -> Exception:
    """The problem that an error means, without details that differ between runs, such as addresses and times."""
    if isinstance(error, TimeoutError):
        return _Temporary(
            BadPicture(
                "timed_out",
                f"not complete within {limits.timeout_s:g} s, not connected within {limits.connect_timeout_s:g} s, or "
                f"no data for {limits.idle_timeout_s:g} s",
            )
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Temporary(BadPicture("truncated", "the connection ended before the body did"))
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):  # a part of the name has more than 63 characters
        return BadPicture("bad_url", "the address is not valid")
    if isinstance(error, aiohttp.ClientSSLError):
        return BadPicture("unreachable", "its certificate is not valid, or it does not speak TLS")
    if isinstance(error, aiohttp.ClientResponseError):
        return BadPicture("http_error", "the answer is not HTTP")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        bad = BadPicture("unreachable", "its name has no address")
        return bad if error.os_error.errno == socket.EAI_NONAME else _Temporary(bad)
    return _Temporary(BadPicture("unreachable", "no connection, or it was closed before an answer"))


def _check_picture(data: bytearray, response: aiohttp.ClientResponse) -> None:
    head = bytes(data[:_HEAD_BYTES])
    if codec.sniff(head) is None:
        raise BadPicture("not_an_image", f"the server sent {response.content_type}, which begins with {head[:16]!r}")


def _unpacked(unpack: Any, chunk: bytes, room: int) -> bytes:
    try:
        return unpack.decompress(chunk, room)
    except zlib.error as error:
        raise BadPicture("http_error", "the body is not compressed as its header says") from error
