"""What a person sees while work goes on. Everything here goes to stderr, so that stdout stays for results."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

Item = TypeVar("Item")
_BAR_WIDTH = 12  # letters; in a narrow terminal it has to leave room for words
_LINE_EVERY = 15.0  # seconds between lines where there is no terminal to draw a bar on


_listener: Callable[[str], object] | None = None


def redirect(listener: Callable[[str], object] | None) -> Callable[[str], object] | None:
    """Give every line to `listener` from now on, and draw no bars: for work for another; who listened before."""
    global _listener
    before, _listener = _listener, listener
    return before


def log(text: str) -> None:
    """One line on stderr, at once."""

    if _listener is not None:
        _listener(text)
        return
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar with the time left; where stderr is not a terminal, a line now and then instead.

    timed: False where one step may take a thousand times what another takes, so that their number says no time.
    """

    def __init__(self, description: str, total: int, *, timed: bool = True) -> None:
        self.description, self.total, self.done, self.timed = description, max(int(total), 1), 0, timed
        self._skipped, self._lock = 0, threading.Lock()
        self._started = self._spoke = time.monotonic()
        self._bar = None
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal and _listener is None:
            from rich.progress import Progress as Bar

            self._bar = Bar(*_columns(timed=timed), console=console, transient=True)
            self._task = self._bar.add_task(description, total=self.total, note="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, steps: int) -> None:
        """Count `steps` as done that took no time: they say nothing of the time that is left."""
        with self._lock:
            self.done, self._skipped = self.done + steps, self._skipped + steps
            if self._bar is not None:
                self._bar.update(self._task, total=self.total - self._skipped)

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more as done; `note` stands behind the bar. Threads may call it at once."""
        with self._lock:
            self._advance(steps, note)

    def _advance(self, steps: int, note: str | None) -> None:
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)
            if note is not None:
                self._bar.update(self._task, note=note)
            return
        if _listener is not None:
            return
        now = time.monotonic()
        if now - self._spoke >= _LINE_EVERY:
            self._spoke = now
            left = (now - self._started) / (self.done - self._skipped) * (self.total - self.done)
            time_left = f", about {format_duration(left)} left" if self.timed else ""
            log(f"{self.description}: {self.done}/{self.total}{time_left} {note or ''}".rstrip())


def _columns(*, timed: bool) -> "list[ProgressColumn]":
    """Of a bar; where the terminal is narrow its words and the bar itself are shortened, and no number is."""
    from rich import progress
    from rich.table import Column
    from rich.text import Text

    class Words(progress.ProgressColumn):
        """Words of a task on one line, with an ellipsis where they are too long; markup in them is none."""

        def __init__(self, of: Callable[[progress.Task], str]) -> None:
            self.of = of
            super().__init__()

        def render(self, task: progress.Task) -> Text:
            return Text(self.of(task), no_wrap=True, overflow="ellipsis")

    kept = Column(no_wrap=True)
    return [
        Words(lambda task: task.description),
        progress.BarColumn(_BAR_WIDTH),
        progress.MofNCompleteColumn(table_column=kept),
        progress.TextColumn("elapsed"),
        progress.TimeElapsedColumn(table_column=kept.copy()),
        *((progress.TextColumn("left"), progress.TimeRemainingColumn(table_column=kept.copy())) if timed else ()),
        Words(lambda task: str(task.fields["note"])),
    ]


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items under a progress bar with the time left."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with Progress(description, count) as bar:
        for item in items:
            yield item
            bar.advance()


def format_duration(seconds: float) -> str:
    """Seconds as a person writes them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
