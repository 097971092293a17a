"""API keys are created, stored as hashes, accepted, refused and revoked."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from library.errors import UsageError
from serve.http.keys import Keys, new_key, parse_keys
from serve.launch.commands import keys_command
from serve.settings import ServeSettings
from tests.serving import LocalModel, apps, asgi_client, problem

KEYS = {name: new_key(name) for name in ("ann", "bob")}
LINES = tuple(line for _, line in KEYS.values())

command = typer.Typer()
command.command()(keys_command)


def get(
    models: dict[str, LocalModel], settings: ServeSettings, path: str, *keys: str, method: str = "GET"
) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with asgi_client(apps(models, settings)) as client:
            return await client.request(
                method, path, headers=[(b"Authorization", key.encode("latin-1")) for key in keys]
            )

    return asyncio.run(ask())


# -- lines and files --------------------------------------------------------------------------------------------------


def test_a_key_is_random_known_by_its_line_and_not_in_it() -> None:
    key, line = new_key("ann")
    assert key != new_key("ann")[0]
    assert len(key) > 43
    assert key not in line
    assert line == f"ann sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert Keys([line]).owner(key) == "ann"
    assert Keys([line]).owner(key + "x") is None
    assert Keys([line]).owner("") is None


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a#b", "x" * 65, "ä", "a\nb"])
def test_a_name_that_would_break_a_line_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a valid name for a key"):
        new_key(name)


def test_lines_may_be_separated_by_commas_and_have_comments() -> None:
    text = f"# ours\n\n{LINES[0]}  # since May\n , {LINES[1]},"
    assert list(parse_keys(text, "here")) == ["ann", "bob"]


@pytest.mark.parametrize("line", ["ann", "ann sha256:12", "ann md5:00", "ANN SHA256:" + "AB" * 32, "striate_secret"])
def test_a_wrong_line_is_reported_by_its_number_and_not_repeated(line: str) -> None:
    with pytest.raises(UsageError, match="line 2: should be") as raised:
        parse_keys(f"{LINES[1]}\n{line}", "keys.txt")
    assert line not in str(raised.value)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two keys named 'ann'"):
        parse_keys(f"{LINES[0]}\n{new_key('ann')[1]}", "keys.txt")


def test_a_missing_file_is_reported_at_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Keys(file=str(tmp_path / "nothing.txt"))


def test_the_command_adds_a_key_and_refuses_a_name_that_exists(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# no newline at the end")
    for name in ("ann", "bob"):
        result = CliRunner().invoke(command, [name, "--file", str(file)])
        assert result.exit_code == 0, result.output
        assert Keys(file=str(file)).owner(result.stdout.strip()) == name
    before = file.read_bytes()
    result = CliRunner().invoke(command, ["ann", "--file", str(file)])
    assert isinstance(result.exception, UsageError)
    assert "already has a key named 'ann'" in str(result.exception)
    assert file.read_bytes() == before


def test_a_new_key_file_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    assert CliRunner().invoke(command, ["ann", "--file", str(file)]).exit_code == 0
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


# -- over HTTP --------------------------------------------------------------------------------------------------------

CLOSED = [
    *("/models", "/readyz", "/steps", "/pipeline?steps=grayscale", "/openapi.json/", "/nothing", "/web"),
    *("/models/grey", "/models/none", "/models/grey/openapi.json", "/models/grey/drift"),
    *("/v2", "/v2/health/live", "/v2/models/grey"),
    *("/healthz/", "/models/grey/healthz", "/web/../models", "/docs/", "/models/grey/docs", "/models/grey//web/x"),
    *("/%2e%2e/models", "/healthz%00"),
]


@pytest.mark.parametrize("path", CLOSED)
def test_everything_needs_a_key(models: dict[str, LocalModel], path: str) -> None:
    settings = ServeSettings(keys=LINES)
    body = problem(get(models, settings, path), 401, "key")
    assert body["how"].startswith("Send one as")
    assert get(models, settings, path, f"Bearer {KEYS['bob'][0]}").status_code != 401


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json", "/", "/web/docs.js"])
def test_liveness_the_page_and_the_docs_need_no_key(models: dict[str, LocalModel], path: str) -> None:
    settings = ServeSettings(keys=LINES)
    assert get(models, settings, path).status_code == 200
    assert get(models, settings, path, method="POST").status_code == 401
    assert "grey" not in get(models, settings, path).text


def test_posting_needs_a_key_before_anything_is_read_or_said(models: dict[str, LocalModel]) -> None:
    for path in (
        "/models/grey/predict",
        "/models/grey/view",
        "/models/grey/inside?part=maps",
        "/preview?steps=nonsense",
        "/v2/models/x/infer",
    ):
        body = problem(get(models, ServeSettings(keys=LINES), path, method="POST"), 401, "key")
        assert "error" in body or not path.startswith("/v2")


@pytest.mark.parametrize(
    "authorizations",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Bearer wrong"],
        [f"Basic {KEYS['ann'][0]}"],
        [KEYS["ann"][0]],
        [f"Bearer {KEYS['ann'][0]}x"],
        [f"Bearer {KEYS['ann'][0][:-1]}"],
        [f"Bearer {LINES[0].split(':')[1]}"],
        [f"Bearer {LINES[0]}"],
        [f"Bearer {KEYS['ann'][0]}", "Bearer wrong"],
        ["Bearer ÿ"],
    ],
)
def test_a_wrong_key_is_401_whatever_is_wrong(models: dict[str, LocalModel], authorizations: list[str]) -> None:
    response = get(models, ServeSettings(keys=LINES), "/models", *authorizations)
    assert problem(response, 401, "key") == problem(get(models, ServeSettings(keys=LINES), "/models"), 401, "key")
    assert response.headers["www-authenticate"] == 'Bearer realm="striate"'


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_known_key_is_accepted(models: dict[str, LocalModel], scheme: str) -> None:
    for key, _ in KEYS.values():
        assert get(models, ServeSettings(keys=LINES), "/models", f"{scheme} {key}").status_code == 200


def test_a_key_deleted_from_the_file_is_refused_and_a_new_one_accepted(
    models: dict[str, LocalModel], tmp_path: Path
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("\n".join(LINES))
    app = apps(models, ServeSettings(keys_file=str(file)))

    async def statuses(client: httpx.AsyncClient) -> list[int]:
        paths = ("/models", "/models/grey")
        headers = [{"Authorization": f"Bearer {key}"} for key, _ in KEYS.values()]
        return [(await client.get(path, headers=header)).status_code for header in headers for path in paths]

    async def play() -> None:
        async with asgi_client(app) as client:
            assert await statuses(client) == [200, 200, 200, 200]
            file.write_text(LINES[1])
            assert await statuses(client) == [401, 401, 200, 200]
            # Admits no client until it is corrected: a revoked key must not stay valid.
            file.write_text(f"{LINES[1]}\na slip")
            assert await statuses(client) == [401, 401, 401, 401]
            replaced = tmp_path / "new.txt"
            replaced.write_text("\n".join(LINES))
            replaced.rename(file)
            assert await statuses(client) == [200, 200, 200, 200]
            file.unlink()
            assert await statuses(client) == [401, 401, 401, 401]

    asyncio.run(play())


def test_without_keys_only_this_machine_is_answered(models: dict[str, LocalModel]) -> None:
    async def play() -> None:
        async with asgi_client(apps(models, ServeSettings())) as client:
            for host in ("127.0.0.1", "127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "127.0.0.2:80"):
                for path in ("/models", "/models/grey"):
                    assert (await client.get(path, headers={"Host": host})).status_code == 200
            for host in (
                "evil.example",
                "evil.example:8000",
                "127.0.0.1.evil.example",
                "localhost.evil:80",
                "",
                "x]:1",
            ):
                for path in ("/models", "/models/grey"):
                    problem(await client.get(path, headers={"Host": host}), 421, "host")
                assert (await client.get("/healthz", headers={"Host": host})).status_code == 200

    asyncio.run(play())
