"""Pictures after any steps, one at a time in a process that can be ended: see `preview_worker`."""

from __future__ import annotations

from library.errors import BadPicture, StepError
from serve.http.service import Busy, TimedOut
from serve.settings import ServeSettings
from serve.worker_process import ProcessEndedError, WorkerPool

_MOST_WAITING = 16
_MAX_SECONDS = 10.0


class Previewer:
    """Shows one picture after another; its process starts with the first and lives until the server ends."""

    def __init__(self, settings: ServeSettings) -> None:
        self._max_pixels = settings.max_pixels
        self._seconds = min(settings.timeout_s, _MAX_SECONDS)
        self._worker = WorkerPool("serve.gateway.preview_worker", 1)
        self._waiting = 0

    async def show(self, data: bytes, steps: str) -> bytes:
        """A picture after steps, as PNG.

        Raises:
            BadPicture: it cannot be used, or is dropped, or would become too large.
            StepError: a step's own code fails.
            TimedOut: the steps took too long.
            Busy: too many wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise Busy("too many previews wait for their turn")
        self._waiting += 1
        try:
            asked = {"steps": steps, "max_pixels": self._max_pixels}
            header, png = await self._worker.ask(asked, data, seconds=self._seconds)
        except ProcessEndedError as ended:
            if ended.in_time:
                raise StepError(f"the steps ended the process that ran them (exit status {ended.status})") from None
            raise TimedOut(f"the steps took more than {self._seconds:g} s") from None
        finally:
            self._waiting -= 1
        if "reason" in header:
            raise BadPicture(header["reason"], header["detail"])
        if "detail" in header:
            raise StepError(header["detail"])
        return png

    def close(self) -> None:
        """End the process."""
        self._worker.close()
