"""A log is followed through everything that breaks it: each line once, in order, and harmless, in one transcript."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ServiceError
from launcher.hub import client
from launcher.jobs import folder as runs
from launcher.jobs import log, stream
from launcher.jobs.events import summarize, watch
from launcher.jobs.log import Seen
from launcher.jobs.service import HubBackend
from launcher.jobs.stream import Entry
from launcher.text import LONGEST, Transcript
from tests.emulator import Hub
from tests.emulator.job import Job
from tests.unit.sample import request

LOGS = "GET /api/jobs/{namespace}/{id}/logs"


@pytest.fixture
def backend(hub: Hub) -> HubBackend:
    return HubBackend(client.Hub(0.02))


def start(hub: Hub, backend: HubBackend) -> Job:
    return hub.jobs[backend.submit(request("pass", secrets=("HF_TOKEN",))).id]


def streams(hub: Hub) -> int:
    """How often the log was asked for."""
    return sum(asked.path.endswith("/logs") for asked in hub.requests)


def transcript(job: Job) -> str:
    return runs.load(job.id).log.read_bytes().decode()


@pytest.mark.parametrize(
    ("kind", "events"),
    [(503, 1), (500, 1), (502, 1), (429, 1), ("reset", 1), ("slow", 1), *[("cut", n) for n in (0, 1, 2, 7, 40, 59)]],
)
def test_no_line_is_lost_or_doubled_wherever_the_stream_breaks(
    hub: Hub, backend: HubBackend, kind: int | str, events: int
) -> None:
    job = start(hub, backend)
    sent = [f"line {number // 2}" for number in range(60)]  # each twice: a repeated line is not a repeated event
    job.log(*sent[:30])
    hub.fail_next(kind, LOGS, times=3, events=events, seconds=0.1)
    lines = backend.logs(job.id, follow=True)
    if kind != "cut":
        assert next(lines) == sent[0]
        hub.fail_next(kind, LOGS, times=2, seconds=0.1)
        job.log(*sent[30:])
        rest = sent[1:]
    else:
        threading.Timer(0.3, job.log, sent[30:]).start()
        rest = sent

    def finish() -> None:
        while len(job.logs) < len(sent):
            time.sleep(0.05)
        job.finish("COMPLETED")

    threading.Timer(0.3, finish).start()
    assert list(lines) == rest
    assert transcript(job) == "".join(f"{line}\n" for line in sent)


def test_a_silent_stream_is_opened_again(hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_S", 0.3)
    job = start(hub, backend)
    job.log("one")

    def go_on() -> None:
        while streams(hub) < 3:
            time.sleep(0.05)
        job.log("two")
        job.finish("ERROR", "Job timeout")

    threading.Thread(target=go_on, daemon=True).start()
    assert list(backend.logs(job.id, follow=True)) == ["one", "two"]
    assert streams(hub) >= 3
    assert transcript(job) == "one\ntwo\n"


def test_a_stream_that_never_ends_does_not_outlast_its_job(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(job: Job, _tail: int | None, _keep_alive_s: float, closing: threading.Event) -> Iterator[object]:
        yield from job.events
        while not closing.is_set():
            time.sleep(0.05)
            yield None

    monkeypatch.setattr(Job, "follow", endless)
    monkeypatch.setattr(log, "_LOOK_S", 0.2)
    job = start(hub, backend)
    job.log("one")
    job.finish("ERROR", "Image build failed")
    assert list(backend.logs(job.id, follow=True)) == ["one"]


@pytest.mark.parametrize("follow", [True, False])
def test_the_end_of_an_ended_jobs_log_is_not_lost_in_silence(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch, follow: bool
) -> None:
    for name in ("SILENCE_S", "DRAINED_S", "STALLED_S"):
        monkeypatch.setattr(stream, name, 0.3)
    job = start(hub, backend)
    sent = [*(f"line {number}" for number in range(8)), "error: the disk is full", 'RESULT {"steps": 5}']
    job.log(*sent)
    job.finish("ERROR", "Job failed with exit code: 1")
    hub.fail_next("stall", LOGS, times=2, events=3, seconds=60)
    assert list(backend.logs(job.id, follow=follow)) == sent
    assert transcript(job) == "".join(f"{line}\n" for line in sent)
    hub.fail_next("stall", LOGS, times=50, events=3, seconds=60)
    with pytest.raises(ServiceError, match="did not answer in time"):
        list(backend.logs(job.id, follow=follow))


@pytest.mark.parametrize("ended", [True, False])
def test_a_log_that_drips_without_a_line_end_is_given_up(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Bytes come, so that no silence is seen, and no line ever ends."""
    for name in ("DRAINED_S", "STALLED_S"):
        monkeypatch.setattr(stream, name, 0.3)
    monkeypatch.setattr(log, "_LOOK_S", 0.2)
    job = start(hub, backend)
    job.log("one line, and another that does not end")
    if ended:
        job.finish("COMPLETED")
    hub.fail_next("drip", LOGS, times=50, seconds=0.02)
    read = list(stream._lines(iter([b"a", b"b", b"c\nd"]), -1.0))
    assert read == [None, None, b"abc"]
    if ended:
        with pytest.raises(ServiceError, match="did not answer in time"):
            list(backend.logs(job.id, follow=False))
    else:
        assert list(backend.logs(job.id, follow=False)) == []


def test_the_log_of_a_job_that_goes_on_has_been_read_where_it_falls_silent(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "DRAINED_S", 0.3)
    job = start(hub, backend)
    job.log("one", "two")
    assert list(backend.logs(job.id, follow=False)) == ["one", "two"]


def test_a_machine_that_slept_opens_the_stream_again(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = [0.0]
    monkeypatch.setattr(stream, "_wall", lambda: time.time() + slept[0])
    monkeypatch.setattr(stream, "_TICK_S", 0.05)
    job = start(hub, backend)
    job.log("before")
    lines = backend.logs(job.id, follow=True)
    assert next(lines) == "before"
    before = streams(hub)

    def wake() -> None:
        time.sleep(0.2)
        slept[0] = 3600.0
        while streams(hub) == before:
            time.sleep(0.05)
        job.log(f"after {streams(hub) - before}")
        job.finish("COMPLETED")

    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    assert list(lines) == ["after 1"]
    waker.join()
    assert transcript(job) == "before\nafter 1\n"


HOSTILE = [
    ("\x1b[2J\x1b[1;1Hgone", "gone"),
    ("\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x1b\\x", "x"),
    ("\x1bPq#0;2\x1b\\sixel", "sixel"),
    ("\x9b31mred \x9d0;t\x9cx \x90q\x9cy", "red x y"),
    (" 10%|#| 1/10\r 20%|##| 2/10\r", " 20%|##| 2/10"),
    ("\u202egnp.exe\u2066", "gnp.exe"),
    ("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg", "abcdefg"),
    ("nul \x00 byte", "nul  byte"),
    ("broken \udcff", "broken ?"),
    ("replaced \ufffd", "replaced \ufffd"),
    ("data: {", "data: {"),
    ("", ""),
    ("x" * (1 << 20), "x" * (LONGEST - 30) + " … [cut: 1,048,576 characters]"),
    ("two\nlines", "two\nlines"),
]


def test_what_a_terminal_would_act_on_reaches_neither_it_nor_the_transcript(hub: Hub, backend: HubBackend) -> None:
    job = start(hub, backend)
    token = "hf_" + "Ab1" * 11
    job.log(*(sent for sent, _ in HOSTILE), f"mine {hub.token}", f"another's {token}", f"hf_\x1b[0m{token[3:]}")
    job.finish("COMPLETED")
    hub.fail_next("cut", LOGS, events=5)
    shown = list(backend.logs(job.id, follow=True))
    wanted = [kept for _, kept in HOSTILE] + ["mine ***", "another's ***", "***"]
    assert "\n".join(shown) == "\n".join(wanted)
    assert transcript(job) == "".join(f"{line}\n" for line in wanted)


def test_the_value_of_a_secret_of_the_run_is_masked(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASS_PHRASE", "correct horse battery")
    job = hub.jobs[backend.submit(request("pass", secrets=("MY_PASS_PHRASE",))).id]
    job.log("I was told correct horse battery.")
    job.finish("COMPLETED")
    assert list(backend.logs(job.id, follow=False)) == ["I was told ***."]
    assert "horse" not in transcript(job)


def test_bytes_that_are_no_text_and_lines_without_end_do_no_harm() -> None:
    sent = [
        b': hello\r\ndata: {"data": "\xff\xfe\\u0000", "times',
        b'tamp": "2026-01-01T00:00:00.1Z"}\n\ndata: {"da',
        b'ta": "next"}\ndata: {broken\n',
        b"data: {" + b"x" * (1 << 20),
    ]
    lines = [line for line in stream._lines(iter(sent)) if line is not None]
    assert lines[0] == b": hello"
    events = [stream._entry(line, "then") for line in lines if line.startswith(b"data: {")]
    assert events == [Entry("2026-01-01T00:00:00.1", "\ufffd\ufffd\0"), Entry("then", "next"), Entry("then", "{broken")]


def test_a_local_transcript_is_as_harmless_and_no_line_fills_the_memory() -> None:
    kept = Transcript()
    written = kept.feed(b"\x1b[31mred\x1b[0m\n\xff half") + kept.feed(b" a line\n")
    assert written.decode() == "red\n\ufffd half a line\n"
    for number in range(3000):  # a progress bar that never ends its line
        assert kept.feed(b"%1000d\r" % number) == b""
    assert kept.feed(b"\n").decode() == f"{2999:1000d}\n"
    for _ in range(300):
        assert kept.feed(b"y" * (1 << 16)) == b""
    assert len(kept._rest) <= 4 * LONGEST
    last = (kept.feed(b"\nafter") + kept.flush()).decode()
    assert last.startswith("y" * (LONGEST - 40)) and last.endswith("bytes left out]\nafter\n")


MOMENTS = st.lists(st.tuples(st.integers(-2, 3), st.sampled_from(["a", "b", "c"])), max_size=40)


@given(MOMENTS, st.lists(st.integers(0, 45), max_size=8), st.integers(0, 40))
def test_what_was_seen_is_told_from_what_is_new(steps: list[tuple[int, str]], cuts: list[int], dropped: int) -> None:
    """Whatever of equal times and texts there is, however the clock goes, and wherever the replays are cut."""
    moment, log = 100, []
    for step, text in steps:
        moment += step
        log.append(Entry(f"{moment:04}", text))
    seen, got = Seen(), []
    for end in [*cuts, len(log)]:
        seen.start_over()
        got += [event for event in log[:end] if seen.is_new(event)]
    assert got == log
    assert seen.count == len(log)
    seen.start_over()
    head = log[dropped:]  # a service that has dropped the start of a log
    assert [event for event in [*head, Entry("0000", "new")] if seen.is_new(event)] == [Entry("0000", "new")]


def test_a_clock_that_steps_back_loses_no_line(hub: Hub, backend: HubBackend) -> None:
    """Neither while it is followed nor in a stream that begins again, in the order of the service or of the clock."""
    job = start(hub, backend)
    sent = [f"step {number}/8 | loss 1.0" for number in range(1, 9)] + ['RESULT {"steps": 8}']
    job.say(*sent)
    for event, minute in zip(job.events[1:], (3, 3, 4, 0, 0, 1, 1, 2, 2), strict=True):
        event["timestamp"] = f"2026-11-28T12:0{minute}:00.000Z"
    job.finish("COMPLETED")
    hub.fail_next("cut", LOGS, times=2, events=7)
    progress = summarize(backend.logs(job.id, follow=True), backend.inspect(job.id).mark)
    assert (progress.step, progress.result, len(progress.losses)) == (8, {"steps": 8}, 8)
    seen = Seen()
    log = [Entry(event["timestamp"], event["data"]) for event in job.events]
    assert [entry for entry in log if seen.is_new(entry)] == log
    seen.start_over()
    again = [*sorted(log, key=lambda entry: entry.time), Entry("2026-11-28T11:00", "more")]
    assert [entry.text for entry in again if seen.is_new(entry)] == ["more"]


def test_a_clock_that_is_ahead_hides_no_line(hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(hub, backend)
    job.log("one", "two", "three")
    for event in job.events:
        event["timestamp"] = "2099-01-01T00:00:00.000Z"
    monkeypatch.setattr(stream, "DRAINED_S", 0.5)
    assert list(backend.logs(job.id, follow=False)) == ["one", "two", "three"]
    assert not job.ended


def test_entries_out_of_order_are_kept() -> None:
    seen = Seen()
    log = [Entry("2", "a"), Entry("1", "b"), Entry("1", "c"), Entry("3", "d")]
    seen.start_over()
    assert [event for event in log[:2] if seen.is_new(event)] == log[:2]
    seen.start_over()
    assert [event for event in log if seen.is_new(event)] == log[2:]


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_log_does_not_grow_the_memory(
    hub: Hub, backend: HubBackend, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    ended = threading.Event()

    def log(*_: object, **__: object) -> Iterator[Entry]:
        for number in range(count if not ended.is_set() else 0):
            text = f"step {number}/{count} | loss 1.5" if number % 2 else f"some other line {number}"
            yield Entry(f"2026-01-01T00:00:00.{number:09}", text)
        ended.set()

    monkeypatch.setattr(stream, "read", log)
    job = start(hub, backend)
    job.finish("COMPLETED")
    sizes, step = [], 0
    for number, line in enumerate(watch(backend.logs(job.id, follow=True))):
        step = line.progress.step
        if number == count // 2:
            tracemalloc.start()
            sizes.append(tracemalloc.get_traced_memory()[0])
    sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert step == count - 1
    # What is remembered is replaced by as much, allocated while it is looked: 20,000 entries of some 200 bytes.
    assert sizes[1] - sizes[0] < 8 << 20
    assert transcript(job).count("\n") == count
