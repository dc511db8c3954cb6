"""How many requests generate at once, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from iro_server.api.errors import api_error
from iro_server.concurrency.admission import SHARED_SECONDS, Admission, RequestTooLarge, Ticket, TooManyWaiting
from iro_server.engines.cache import cached_tokens
from iro_server.engines.memory import EngineOutOfMemory
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for, wait_for

HI = [{"role": "user", "content": "hi"}]


async def enter(admission: Admission, project: str, rows: int, cache_tokens: int = 0) -> Ticket:
    """An admitted ticket, released if the wait for it is cancelled."""
    ticket = admission.queue(project, rows, cache_tokens)
    try:
        await ticket.admitted.wait()
    except asyncio.CancelledError:
        ticket.release()
        raise
    return ticket


async def waiting(admission: Admission, rows: int, cache_tokens: int = 0, project: str = "mine") -> asyncio.Task:
    task = asyncio.create_task(enter(admission, project, rows, cache_tokens))
    await asyncio.sleep(0)
    return task


async def test_rows_are_shared_out_first_come_first_served():
    admission = Admission(max_rows=8, max_waiting=2)
    first = await enter(admission, "mine", 6)
    big, small = await waiting(admission, 4), await waiting(admission, 1)
    assert not big.done() and not small.done()  # the small one does not overtake
    with pytest.raises(TooManyWaiting) as refusal:
        await enter(admission, "mine", 1)
    error = api_error(refusal.value)
    assert (error.status, error.code, error.headers) == (503, "overloaded", {"Retry-After": "2"})
    first.release()
    first.release()
    assert (await big).rows == 4 and (await small).rows == 1 and admission.active == 5


async def test_the_project_that_holds_the_fewest_rows_is_next_however_many_requests_another_has_waiting():
    admission = Admission(max_rows=4, max_waiting=3)
    first, second = [await enter(admission, "flood", 2) for _ in range(2)]
    flood = [await waiting(admission, 2, project="flood") for _ in range(3)]
    with pytest.raises(TooManyWaiting, match="3 requests of this project wait"):
        await enter(admission, "flood", 2)
    other, third = [await waiting(admission, 2, project=name) for name in ("other", "third")]
    first.release()
    await asyncio.sleep(0)
    assert other.done() and not third.done() and not any(task.done() for task in flood)
    other.result().release()
    await asyncio.sleep(0)
    assert third.done() and not any(task.done() for task in flood)
    third.result().release(), second.release()
    await asyncio.sleep(0)
    assert [task.done() for task in flood] == [True, True, False]
    for task in flood:
        (await task).release()
    assert (admission.active, admission.active_of, admission.waiting) == (0, {}, {})


async def test_a_project_has_a_share_of_the_rows_while_another_uses_the_server():
    now = 0.0
    admission = Admission(max_rows=64, max_waiting=64, max_project_rows=4, clock=lambda: now)
    alone = [await enter(admission, "flood", 1) for _ in range(10)]
    (await enter(admission, "other", 1)).release()
    flood = [await waiting(admission, 1, project="flood") for _ in range(10)]
    for ticket in alone:
        ticket.release()
    await asyncio.sleep(0)
    assert admission.active_of["flood"] == 4
    large = await enter(admission, "other", 16)  # more than the share, and the project has no other
    assert admission.active == 20 and not (await waiting(admission, 1, project="other")).done()
    large.release()
    await asyncio.sleep(0)
    assert (admission.active_of["other"], sum(task.done() for task in flood)) == (1, 4)


async def test_the_share_ends_a_minute_after_another_projects_last_request():
    now = 0.0
    admission = Admission(max_rows=64, max_waiting=64, max_project_rows=4, clock=lambda: now)
    (await enter(admission, "other", 1)).release()
    tasks = [await waiting(admission, 1, project="mine") for _ in range(8)]
    assert sum(task.done() for task in tasks) == 4
    now += SHARED_SECONDS + 1
    tasks[0].result().release()
    await asyncio.sleep(0)
    assert all(task.done() for task in tasks) and admission.active == 7


async def test_a_request_larger_than_all_there_is_runs_alone():
    admission = Admission(max_rows=8, max_waiting=2)
    huge = await enter(admission, "mine", 100)
    other = await waiting(admission, 1)
    assert not other.done()
    huge.release()
    (await other).release()
    assert admission.active == 0


async def test_cached_tokens_are_shared_out_as_rows_are():
    admission = Admission(max_rows=8, max_waiting=2, max_cache_tokens=1000)
    first = await enter(admission, "mine", 1, 900)
    big, small = await waiting(admission, 1, 200), await waiting(admission, 1, 50)
    assert not big.done() and not small.done()  # both have rows to spare
    small.cancel()
    first.release()
    (await big).release()
    assert (admission.active, admission.active_cache_tokens) == (0, 0)
    with pytest.raises(RequestTooLarge, match="1001 tokens in the model's cache, over 1000") as refusal:
        await enter(admission, "mine", 1, 1001)
    error = api_error(refusal.value)
    assert (error.status, error.code, error.param) == (400, "too_many_tokens", "max_tokens")


def test_a_requests_cache_holds_its_prompt_once():
    """A search reads one copy; each plain sample of a short prompt has its own beside it, of a long prompt none."""
    assert cached_tokens(prompt=8000, sessions=16, rows=16, new_tokens=100) == 8000 + 1600
    assert cached_tokens(prompt=100, sessions=16, rows=16, new_tokens=100) == 100 + 1600 + 1600


async def test_one_that_gives_up_leaves_no_trace():
    admission = Admission(max_rows=8, max_waiting=4)
    first = await enter(admission, "mine", 8)
    gone, last = await waiting(admission, 8), await waiting(admission, 2)
    gone.cancel()
    first.release()
    with pytest.raises(asyncio.CancelledError):
        await gone
    (await last).release()
    raced = await waiting(admission, 8)
    assert raced.done()
    raced.result().release()
    held = await enter(admission, "mine", 8)
    raced = await waiting(admission, 8)
    held.release()  # its turn comes, and it is cancelled before it hears of it
    raced.cancel()
    with pytest.raises(asyncio.CancelledError):
        await raced
    assert admission.active == 0 and not admission.waiting


def slow_engine() -> ByteEngine:
    return ByteEngine(script="x" * 400, noise=0.0, seconds_per_token=0.02)


def ask(client: openai.OpenAI, **options):
    return client.chat.completions.create(**({"model": "bytes", "messages": HI, "max_tokens": 100} | options))


def test_a_full_server_says_so_and_serves_again(tmp_path):
    engine = slow_engine()
    with (
        serving(settings_for(tmp_path, max_active_rows=1, max_waiting=1), engine) as client,
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(ask, client)
        wait_for(lambda: engine.open_sessions)
        queued = pool.submit(ask, client, max_tokens=1)
        time.sleep(0.5)  # it waits by now
        with pytest.raises(openai.InternalServerError) as refusal:
            ask(client, max_tokens=1)
        assert refusal.value.status_code == 503 and refusal.value.code == "overloaded"
        assert refusal.value.response.headers["retry-after"]
        running.result(), queued.result()
        ask(client, max_tokens=1)


def test_a_request_that_is_sent_away_spends_no_tokens_of_its_key_and_holds_no_rows(tmp_path):
    engine, settings = slow_engine(), settings_for(tmp_path, max_active_rows=1, max_waiting=1)
    secret = keys.create(open_database(settings), "mine", tokens_per_minute=400)[1]
    with serving(settings, engine) as client, ThreadPoolExecutor() as pool:
        client = client.with_options(api_key=secret)
        running = [pool.submit(ask, client)]
        wait_for(lambda: engine.open_sessions)
        running.append(pool.submit(ask, client, max_tokens=1))
        time.sleep(0.5)  # it waits by now
        for _ in range(5):
            with pytest.raises(openai.InternalServerError) as refusal:
                ask(client, max_tokens=100)
            assert refusal.value.code == "overloaded"
        for request in running:
            request.result()
        with pytest.raises(openai.RateLimitError):
            ask(client, max_tokens=350)
        ask(client, max_tokens=100, timeout=10)


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_and_frees_its_rows(tmp_path, stream):
    engine = slow_engine()
    with serving(settings_for(tmp_path, request_timeout=0.5), engine) as client:
        with pytest.raises(openai.APIError) as refusal:
            list(ask(client, stream=True)) if stream else ask(client)
        assert refusal.value.code == "deadline_exceeded"
        wait_for(lambda: engine.open_sessions == 0)


def test_a_request_whose_tokens_never_fit_in_memory_is_refused(tmp_path):
    with serving(settings_for(tmp_path, max_cache_tokens=500), ByteEngine()) as client:
        ask(client)
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, n=5)
        assert (refusal.value.code, refusal.value.param) == ("too_many_tokens", "max_tokens")
        assert "Reduce" in refusal.value.message


def test_a_search_that_could_draw_too_many_tokens_is_refused(tmp_path):
    with serving(settings_for(tmp_path, max_request_tokens=1000), ByteEngine()) as client:
        search = {"beam_width": 4, "num_successors": 4}
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, extra_body={"search": search})
        assert (refusal.value.code, refusal.value.param) == ("too_many_tokens", "max_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_their_places(tmp_path, stream):
    engine = ByteEngine(script="x" * 400, noise=0.0, seconds_per_token=0.2)
    with serving(settings_for(tmp_path, max_active_rows=1), engine) as client:
        for _ in range(3):
            with pytest.raises(openai.APITimeoutError):
                list(ask(client, stream=True, timeout=0.1)) if stream else ask(client, timeout=0.3)
        ask(client, max_tokens=1, timeout=10)  # nobody is in the way
        wait_for(lambda: engine.open_sessions == 0)


def test_a_server_told_to_stop_lets_requests_finish(tmp_path):
    engine = slow_engine()
    said: list[str] = []
    with serving(settings_for(tmp_path), engine) as client:
        asking = threading.Thread(target=lambda: said.append(ask(client).choices[0].message.content))
        asking.start()
        wait_for(lambda: engine.open_sessions)
        time.sleep(0.1)
    asking.join()
    assert said == ["x" * 100]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_drain_is_too_short_for_hears_of_it(tmp_path, stream):
    engine = slow_engine()
    heard: list[openai.APIError] = []

    def asking(client: openai.OpenAI) -> None:
        try:
            list(ask(client, stream=True, max_tokens=400)) if stream else ask(client, max_tokens=400)
        except openai.APIError as error:
            heard.append(error)

    with serving(settings_for(tmp_path, drain=0.5), engine) as client:
        thread = threading.Thread(target=asking, args=(client,))
        thread.start()
        wait_for(lambda: engine.open_sessions)
    thread.join()
    assert [error.code for error in heard] == ["server_stopping"]
    assert engine.open_sessions == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_engine_has_no_memory_for_hears_of_it(tmp_path, monkeypatch, stream):
    async def fail(*_):
        raise EngineOutOfMemory("out of memory")

    monkeypatch.setattr("tests.iro_server.api.byte_engine.ByteSession.extend", fail)
    with serving(settings_for(tmp_path), ByteEngine()) as client, pytest.raises(openai.APIError) as refusal:
        list(ask(client, stream=True)) if stream else ask(client)
    assert refusal.value.code == "out_of_memory" and "Reduce" in refusal.value.message
