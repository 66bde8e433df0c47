"""What a person sees in a terminal: bars whose numbers are whole at any width, tables of which nothing is cut."""

import re
import sys
import time
from types import SimpleNamespace

import pytest

from trustcxr import console, report
from trustcxr.console import Progress

LONG = "evaluating a-network-whose-name-has-forty-four-letters-in-it on 570 images"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("timed", [True, False])
def test_numbers_of_a_bar_are_whole_however_long_its_words_are(
    width: int, timed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with Progress(LONG, 10_000, timed=timed) as bar:
        bar.advance(9_000, note="worst-case [0.02] of a long name")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").splitlines()
    line = next(line for line in lines if "9000" in line)
    assert re.search(r" 9000/10000 elapsed 0:00:0\d " + ("left -:--:-- " if timed else ""), line), line
    assert line.startswith(LONG if width == 200 else "eva")
    assert ("…" in line) == (width < 200)
    assert len(line.rstrip()) <= width
    if width == 200:
        assert "[0.02]" in line


def test_a_word_that_no_terminal_has_room_for_is_broken_and_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    letters = "".join(chr(97 + n % 26) for n in range(100))
    report.print_rows("long words", [{"folder": letters, "why": letters.upper(), "n": 570}])
    shown = capsys.readouterr().out
    assert [sum(map(shown.count, set(part))) >= 100 for part in (letters, letters.upper())] == [True, True]
    assert "570" in shown
    assert max(map(len, shown.splitlines())) <= 60


def test_a_notebook_has_a_bar_of_tqdm_that_goes_when_the_work_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not console.in_notebook()
    shell = SimpleNamespace(kernel=None, config={})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert console.in_notebook()
    with Progress("evaluating", 10) as bar:
        bar.skip(6)
        time.sleep(0.15)  # tqdm draws at most ten times a second
        bar.advance(4, note="pgd 0.02")
    shown = capsys.readouterr().err
    assert "evaluating: 100%" in shown
    assert "4/4" in shown
    assert "pgd 0.02" in shown
    assert shown.split("\r")[-1].strip() == ""
    before = console.redirect(lambda text: None)
    try:
        with Progress("evaluating", 10) as bar:
            bar.advance(10)
    finally:
        console.redirect(before)
    assert capsys.readouterr().err == ""
