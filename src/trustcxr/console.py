"""Print messages and progress to stderr, so that stdout stays free for results."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import rich.progress

Item = TypeVar("Item")
_BAR_WIDTH = 12  # characters
_LINE_EVERY = 15.0  # seconds between lines if stderr is not a terminal

_listener: Callable[[str], object] | None = None


def redirect(listener: Callable[[str], object] | None) -> Callable[[str], object] | None:
    """Send every message to `listener` and draw no bars. Returns the previous listener."""
    global _listener
    previous, _listener = _listener, listener
    return previous


def log(text: str) -> None:
    """Print one line to stderr, without buffering."""
    if _listener is not None:
        _listener(text)
    else:
        print(text, file=sys.stderr, flush=True)


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class Progress:
    """A progress bar with the time left, also in a notebook; if stderr is not a terminal, a line every 15 seconds.

    timed: False if the duration of a step varies so much that the time left cannot be estimated.
    """

    def __init__(self, description: str, total: int, *, timed: bool = True) -> None:
        self.description, self.total, self.done, self.timed = description, max(int(total), 1), 0, timed
        self._skipped, self._lock = 0, threading.Lock()
        self._started = self._last_line = time.monotonic()
        self._notebook = _make_notebook_bar(description, self.total) if in_notebook() else None
        self._bar = None if self._notebook is not None else _make_bar(timed=timed)
        if self._bar is not None:
            self._task = self._bar.add_task(description, total=self.total, note="")
            self._bar.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._notebook is not None:
            self._notebook.close()

    def skip(self, steps: int) -> None:
        """Count `steps` as done that took no time, so that they do not change the time left."""
        with self._lock:
            self.done, self._skipped = self.done + steps, self._skipped + steps
            if self._bar is not None:
                self._bar.update(self._task, total=self.total - self._skipped)
            if self._notebook is not None:
                self._notebook.reset(self.total - self._skipped)
                self._notebook.update(self.done - self._skipped)

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more as done, and show `note` after the bar. Threads may call it concurrently."""
        with self._lock:
            self.done += steps
            if self._bar is not None:
                fields: Any = {} if note is None else {"note": note}
                self._bar.update(self._task, advance=steps, **fields)
            elif self._notebook is not None:
                self._notebook.set_postfix_str(note or "", refresh=False)
                self._notebook.update(steps)
            elif _listener is None and (now := time.monotonic()) - self._last_line >= _LINE_EVERY:
                self._last_line = now
                left = (now - self._started) / (self.done - self._skipped) * (self.total - self.done)
                time_left = f", about {format_duration(left)} left" if self.timed else ""
                log(f"{self.description}: {self.done}/{self.total}{time_left} {note or ''}".rstrip())


def in_notebook() -> bool:
    """Return whether this code runs in a cell of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _make_notebook_bar(description: str, total: int) -> Any:
    """Return a bar of tqdm, a widget if ipywidgets is installed; None if messages go to a listener."""
    import warnings

    if _listener is not None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets the bar is text
        from tqdm.auto import tqdm

    return tqdm(total=total, desc=description, leave=False)


def _make_bar(*, timed: bool) -> "rich.progress.Progress | None":
    """Return a bar of rich; None if stderr is no terminal. In a narrow terminal text is shortened, numbers are not."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class ShortText(progress.TextColumn):
        def __init__(self, text: str) -> None:
            super().__init__(text, markup=False, table_column=Column())  # without no_wrap, a column can shrink

        def render(self, task: progress.Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    console = Console(stderr=True)
    if _listener is not None or not console.is_terminal:
        return None
    columns = [
        ShortText("{task.description}"),
        progress.BarColumn(_BAR_WIDTH),
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        progress.TextColumn("elapsed"),
        progress.TimeElapsedColumn(table_column=Column(no_wrap=True)),
    ]
    if timed:
        columns += [progress.TextColumn("left"), progress.TimeRemainingColumn(table_column=Column(no_wrap=True))]
    return progress.Progress(*columns, ShortText("{task.fields[note]}"), console=console, transient=True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items under a progress bar with the time left."""
    with Progress(description, len(items) if total is None else total) as bar:  # type: ignore[arg-type]
        for item in items:
            yield item
            bar.advance()


def format_duration(seconds: float) -> str:
    """Format seconds as "42 s", "3 min 20 s" or "2 h 5 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
