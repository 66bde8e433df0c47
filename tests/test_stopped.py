"""Ctrl-C: one line that says what is there and what the same command does next, and exit code 130."""

import sys

import pytest

from trustcxr import cli

GOES_ON = "the same command goes on from here"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("train", f"{GOES_ON}: finished epochs and runs are kept"),
        ("study", f"{GOES_ON}: finished epochs and runs are kept"),
        ("demo", f"{GOES_ON}: finished epochs and runs are kept"),
        ("audit", f"{GOES_ON}: finished batches are kept"),
        ("predict", "the heatmaps written so far are kept"),
        ("evaluate", "the results from before are kept"),
        ("explain", "the results from before are kept"),
        ("report", "nothing was overwritten"),
        ("data", "files are written whole or not at all"),
    ],
)
def test_what_was_stopped_says_what_is_kept(
    command: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    monkeypatch.setattr(sys, "argv", ["trustcxr", command, "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 130
    assert said.startswith("trustcxr: stopped; ")
    assert said.count("\n") == 1
    assert text in said
