"""The job API of a cluster: where it is, the token for it, and what its errors mean."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from library.errors import StriateError, UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

#: Waits before each further try to reach it, in seconds: a port-forward that is started again, a head that comes up.
_WAITS_S = (1, 2, 4, 8)

_T = TypeVar("_T")


class Lost(StriateError):
    """Nothing answers, or not as the job API does; it may answer again."""


class Unknown(StriateError):
    """The cluster has no such job."""


class JobServer:
    """A connection to the job API at `address`, checked when it is made.

    Args:
        address: of Ray's dashboard.
        token: see `find_token`.
        waits_s: before each further try, where nothing answers.
        told: is called with what is waited for.

    Raises:
        Lost: when nothing answers after all tries.
        StriateError: when the token is missing or wrong.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        waits_s: tuple[float, ...] = _WAITS_S,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.address = address
        self._client = self._connected(token, waits_s, told)

    @property
    def client(self) -> JobSubmissionClient:
        return self._client

    def ask(self, question: Callable[[JobSubmissionClient], _T]) -> _T:
        """What the client answers.

        Raises:
            Lost, Unknown, StriateError: for what Ray raises.
        """
        with self.explained():
            return question(self._client)

    def details(self, job: str) -> JobDetails:
        """Of a job, by its submission id.

        Raises:
            Unknown: with the ids there are.
        """
        return self.ask(lambda client: client.get_job_info(job))

    def _connected(
        self, token: str | None, waits_s: tuple[float, ...], told: Callable[[str], None]
    ) -> JobSubmissionClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # A head that starts anew answers again after a while, and tells nobody when.
        for number, wait_s in enumerate((*waits_s, None)):
            try:
                with self.explained(), _only_address(self.address):
                    return JobSubmissionClient(self.address, headers=headers)
            except Lost as error:
                if wait_s is None:
                    raise
                if number == 0:
                    told(f"{error}; trying for {sum(waits_s):.0f} s")
                time.sleep(wait_s)  # longer from try to try, for one that is starting
        raise AssertionError("the last round returns or raises")

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what Ray's client raises into what, where, and what would work."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise StriateError(self._refused("Authentication failed" not in error.message)) from error
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise StriateError(self._refused(error.status == 401)) from error
            raise Lost(f"{self.address} does not send the log: {error.message} ({error.status})") from error
        except requests.HTTPError as error:
            # 502 and its like come from a proxy before a head that is down.
            gone = error.response is not None and error.response.status_code >= 500
            raise (Lost if gone else StriateError)(self._not_ray(str(error))) from error
        except (KeyError, ValueError) as error:  # what is sent is no JSON of Ray's
            raise StriateError(self._not_ray(_reason(error))) from error
        except (requests.RequestException, aiohttp.ClientError, OSError) as error:
            raise Lost(
                f"nothing answers at {self.address} ({_reason(error)}); is the cluster up, is that the port of its "
                "dashboard (8265), is it forwarded?"
            ) from error
        except RuntimeError as error:  # all that Ray makes of other answers
            if "status code 404" in str(error):
                raise Unknown(f"{self.address}: {_answer(error)}; `striate jobs` lists those there are") from error
            if "Version check" in str(error):
                raise StriateError(self._not_ray(_answer(error))) from error
            raise Lost(f"{self.address}: {_answer(error)}") from error

    def _not_ray(self, why: str) -> str:
        return f"{self.address} does not answer as Ray's dashboard does ({why})"

    def _refused(self, missing: bool) -> str:
        how = "set RAY_AUTH_TOKEN, or name a file that holds it: --token-file FILE"
        if missing:
            return f"{self.address} wants a token: {how}"
        return f"{self.address} refuses the token: it is not that cluster's; {how}"


@contextmanager
def _only_address(address: str) -> Generator[None]:
    """Ray lets this variable, or RAY_ADDRESS, override the address that it is given."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


def find_address(address: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The job API that is meant: `--address`, else Ray's variables, else a Ray on this machine.

    Raises:
        UsageError: when it is no http address.
    """
    if address is not None:
        named = f"--address '{address}'"
    elif environment.get(_ADDRESS_VARIABLE):
        address, named = environment[_ADDRESS_VARIABLE], _ADDRESS_VARIABLE
    elif environment.get("RAY_ADDRESS"):
        address, named = environment["RAY_ADDRESS"], "RAY_ADDRESS"
    else:
        return DEFAULT_ADDRESS
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"{named}: jobs go to Ray's dashboard, as --address http://HOST:8265"
            + ("" if address in named else f", not to {address}")
        )
    return address.rstrip("/")


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it three times."""
    inner = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    text = getattr(inner, "strerror", None) or str(inner)
    return text.strip().splitlines()[-1] if text.strip() else type(inner).__name__


def _answer(error: RuntimeError) -> str:
    """Ray sends tracebacks; the last line says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else type(error).__name__
    return last.rpartition("status code ")[2].rstrip(".")
