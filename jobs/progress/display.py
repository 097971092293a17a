"""Shows the progress of a job on stderr: a live bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from cluster.console import Terminal, say
from jobs.progress.status import Count

_LINE_EVERY_S = 10.0
_DRAW_EVERY_S = 0.5
# With thousands of workers a snapshot takes seconds (docs/scale.md), in which the driver and Ray's store have less time
# for the shards; snapshots take at most this share of the time.
_MOST_LOOKING = 0.1


class Progress:
    """Shows `snapshot()` while the block runs.

    Args:
        title: name of the job.
        shards: number of shards of the job.
        pictures: number of pictures of the job.
        snapshot: returns the work done so far; called from a thread.
    """

    def __init__(self, title: str, shards: int, pictures: int, snapshot: Callable[[], Count]) -> None:
        self._title, self._shards, self._pictures, self._snapshot = title, shards, pictures, snapshot
        self._console = Terminal(stderr=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._start = time.monotonic()
        self._looked_s = 0.0

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def line(self, count: Count) -> str:
        """Returns `filter: 3/10 shards, 380/1,000 pictures (38%), 652/s, 7 MB/s, 9 s left, 3 dropped, 0 rejected`."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = count.pictures / seconds
        share = count.pictures / self._pictures if self._pictures else 1.0
        left = f"{duration((self._pictures - count.pictures) / rate)} left" if rate else "starting"
        return (
            f"{self._title}: {count.shards:,}/{self._shards:,} shards, "
            f"{count.pictures:,}/{self._pictures:,} pictures ({share:.0%}), {rate:,.0f}/s, "
            f"{count.image_bytes / seconds / 1e6:,.1f} MB/s, {left}, "
            f"{count.dropped:,} dropped, {count.rejected:,} rejected"
        )

    def _run(self) -> None:
        if self._console.is_terminal:
            with Live(self._drawn(Count()), console=self._console, auto_refresh=False, transient=True) as live:
                while not self._wait(_DRAW_EVERY_S):
                    live.update(self._drawn(self._look()), refresh=True)
            return
        while not self._wait(_LINE_EVERY_S):
            say(self.line(self._look()), file=sys.stderr, flush=True)

    def _wait(self, seconds: float) -> bool:
        """Waits until the next snapshot is due; returns whether the block has ended."""
        return self._stop.wait(max(seconds, self._looked_s / _MOST_LOOKING))

    def _look(self) -> Count:
        start = time.monotonic()
        count = self._snapshot()
        self._looked_s = time.monotonic() - start
        return count

    def _drawn(self, count: Count) -> Group:
        bar = ProgressBar(total=max(self._pictures, 1), completed=count.pictures, width=60)
        return Group(bar, Text(self.line(count)))


def duration(seconds: float) -> str:
    """Returns `45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
