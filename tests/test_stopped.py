"""Ctrl-C and SIGTERM: one line that says what is there and what the same command does next, and exit code 130."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from small_runs import MODEL
from trustcxr import cli
from trustcxr.data.phantom import write_files

GOES_ON = "the same command goes on from here"
# The command as it is typed, with Typer around it: it waits where it would look at its run.
WAITS = """
import sys, time
from trustcxr import cli

def wait(_):
    print("waits", flush=True)
    while True:
        time.sleep(0.01)

cli.options.is_external = wait
sys.argv = ["trustcxr", "evaluate", "run", "--data", "images"]
cli.main()
"""


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("train", f"{GOES_ON}: finished epochs and runs are kept"),
        ("audit", f"{GOES_ON}: finished batches are kept"),
        ("predict", "the heatmaps written so far are kept"),
        ("evaluate", "the results from before are kept"),
        ("report", "nothing was overwritten"),
        ("data", "files are written whole or not at all"),
        ("serve", "nothing of any image was kept"),
        ("reader-study", "what the readers saved is kept"),
        ("data download", f"stopped; {GOES_ON}"),
    ],
)
@pytest.mark.parametrize("typer_keeps_it", [True, False])
def test_what_was_stopped_says_what_is_kept(
    typer_keeps_it: bool, command: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**_: object) -> int:
        if typer_keeps_it:
            return 130
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    monkeypatch.setattr(sys, "argv", ["trustcxr", *command.split(), "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 130
    assert said.startswith("trustcxr: stopped; ")
    assert said.count("\n") == 1
    assert text in said


def signalled(number: signal.Signals, ready: Callable[[subprocess.Popen[str]], bool], *words: str) -> str:
    """What a command says that is sent a signal once it is ready, as from a terminal: in the background it is deaf."""
    process = subprocess.Popen(
        [sys.executable, *words],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 300
        while process.poll() is None and not ready(process) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    return said


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_sent_a_signal_says_one_line(number: signal.Signals) -> None:
    said = signalled(number, lambda process: process.stdout.readline() == "waits\n", "-c", WAITS)
    assert said == f"trustcxr: stopped; {cli.describe_restart(['evaluate'])}\n"


@pytest.mark.sample("2")
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_sent_a_signal_says_one_line(number: signal.Signals, tmp_path: Path) -> None:
    images, out = write_files.write(tmp_path / "images", {"Train": 16, "Val": 8, "Test": 2}, size=32), tmp_path / "out"
    options = {"model": MODEL, "weights": "none", "size": "32", "epochs": "100000", "patience": "100000"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    begun = out / "checkpoint" / "last.ckpt"
    typed = ("-m", "trustcxr", "train", "--data", str(images), "--out", str(out), *words)
    said = signalled(number, lambda _: begun.exists(), *typed)
    assert [line for line in said.splitlines() if "stopped" in line] == [
        f"trustcxr: stopped; {GOES_ON}: finished epochs and runs are kept"
    ], said
    assert "Traceback" not in said


def test_the_second_of_two_signals_disturbs_no_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cli.stop_on_sigterm(["evaluate"]):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("words", ["serve run", "reader-study study", "study quick --engine slurm"])
def test_servers_and_jobs_of_a_cluster_are_left_to_their_own_way(words: str) -> None:
    with cli.stop_on_sigterm(words.split()):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_refused_or_taken_stays_so_and_a_thread_takes_none() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with cli.stop_on_sigterm(["evaluate"]):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def within() -> object:
        with cli.stop_on_sigterm(["evaluate"]):
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(within).result() == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_was_forked_ends_by_the_signal_as_ever() -> None:
    with cli.stop_on_sigterm(["evaluate"]):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
