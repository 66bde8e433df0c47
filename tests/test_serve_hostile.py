"""The server as a process of its own: load, memory, hostile uploads, the schema fuzzed, workers that break."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.speed import serve as bench

import served as small

pytest.importorskip("fastapi", reason="the page's server is not installed: pip install '.[serve]'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bench.Served]:
    place = tmp_path_factory.mktemp("hostile")
    run = small.untrained_run(place / "run")
    with bench.served(run, place / "log") as found:
        yield found
    said = (place / "log").read_text()
    assert not any(word in said for word in (bench.MARK, "Traceback", "etc/passwd", "script")), said


@pytest.mark.full
def test_hostile_uploads_are_answered_in_words_and_nothing_breaks(server: bench.Served) -> None:
    answers = bench.Answers()
    sent = list(bench.hostile(160))
    for upload in sent:
        bench.send(server.url, upload, answers)
    assert answers.faults == []
    assert sum(answers.statuses.values()) == len(sent)
    assert set(answers.statuses) <= {200, 400, 413, 415, 422}
    assert max(answers.seconds) < 60
    assert bench.ask(server.url, "GET", "/healthz")[0] == 200


def test_the_check_itself_sees_faults() -> None:
    answers = bench.Answers()
    answers.add("a", 500, {}, b'{"error": {"code": "x", "message": "y"}}', 0.1)
    answers.add("b", 503, {}, b'{"error": {"code": "x", "message": "y"}}', 0.1)
    answers.add("c", 422, {}, b"<html>", 0.1)
    answers.add("d", 200, {}, b'{"file": "/tmp/x"}', 0.1)
    assert [fault[0] for fault in answers.faults] == ["a", "b", "c", "d"]


@pytest.mark.full
def test_under_load_the_only_refusal_is_a_clean_503(server: bench.Served) -> None:
    answers = bench.load(server.url, clients=32, seconds=6)
    assert answers.faults == []
    assert set(answers.statuses) == {200, 503}


@pytest.mark.full
def test_memory_stays_as_it_is(server: bench.Served) -> None:
    answers, early, late = bench.many(server, 160, first=60)
    assert set(answers.statuses) == {200}
    assert sum(late) < sum(early) + 40, (early, late)


@pytest.mark.full
def test_the_schema_holds_for_what_schemathesis_thinks_of(server: bench.Served) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = schemathesis.checks
    asked = [
        checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance,
    ] if hasattr(checks, "status_code_conformance") else None  # fmt: skip
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def holds(case: object) -> None:
            response = case.call()  # type: ignore[attr-defined]
            case.validate_response(response, checks=asked) if asked else case.validate_response(response)  # type: ignore[attr-defined]

        holds()


@pytest.mark.full
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    from trustcxr.apps.serve.api_models import WorkItem
    from trustcxr.apps.serve.worker import Limits, Pool

    async def scene() -> None:
        pool = Pool([small.untrained_run(tmp_path)], Limits(workers=1))
        await pool.start()
        try:
            (worker,) = pool._all
            os.kill(worker.process.pid, signal.SIGSTOP)
            pool.limits.__dict__["reading"] = 1.0
            slow = await pool.ask(WorkItem("predict", small.image(1)))
            assert (slow.status, slow.code) == (422, "too-slow")
            await asyncio.sleep(0.3)
            assert pool.alive == 0  # the next one loads its runs, and says nothing yet
            pool.limits.__dict__["reading"] = 60.0
            again = await pool.ask(WorkItem("predict", small.image(1)))
            assert again.status == 200
            assert pool.restarts == 1
            (worker,) = pool._all
            os.kill(worker.process.pid, signal.SIGKILL)
            broken = await pool.ask(WorkItem("predict", small.image(1)))
            assert (broken.status, broken.code) == (422, "unreadable")
            assert (await pool.ask(WorkItem("predict", small.image(1)))).status == 200
        finally:
            await pool.stop()
        assert pool.alive == 0

    asyncio.run(scene())


@pytest.mark.full
def test_starting_it_wrongly_is_one_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "trustcxr", "serve"]
    for given, said in (([str(tmp_path / "none")], "no such run folder"), ([], "Missing argument")):
        done = subprocess.run([*command, *given], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
