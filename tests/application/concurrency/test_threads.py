"""The pool in which plain handlers run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest

from eyewall.application.concurrency.threads import Threads, current_call


@pytest.fixture
def threads():
    pool = Threads(2)
    yield pool
    pool.close()


async def test_a_call_runs_in_a_thread_and_its_result_comes_back(threads):
    assert await threads.run(threading.get_ident) != threading.get_ident()
    assert await threads.run(divmod, 7, 2) == (3, 1)


async def test_what_a_call_raises_comes_back(threads):
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 1, 0)


async def test_stop_iteration_is_a_failure_like_any_other(threads):
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))


async def test_context_variables_come_along(threads):
    name = ContextVar("name", default="nobody")
    name.set("ada")

    assert await threads.run(name.get) == "ada"


async def test_no_more_calls_than_threads_run_at_a_time(threads):
    together = threading.Barrier(2)

    first = [asyncio.create_task(threads.run(together.wait, 10)) for _ in range(2)]
    await asyncio.gather(*first)
    gate = threading.Event()
    held = [asyncio.create_task(threads.run(gate.wait, 10)) for _ in range(2)]
    third = asyncio.create_task(threads.run(gate.is_set))
    await asyncio.sleep(0)
    gate.set()

    assert await third
    assert await asyncio.gather(*held) == [True, True]


async def test_one_thread_is_used_again():
    threads = Threads(64)

    names = {await threads.run(lambda: threading.current_thread().name) for _ in range(50)}
    threads.close()

    # Another one is started when a call comes before the last thread is idle again, which
    # a busy machine may bring about several times.
    assert len(names) < 25


async def test_closing_cancels_what_has_not_begun():
    threads, gate = Threads(1), threading.Event()
    begun = asyncio.create_task(threads.run(gate.wait, 10))
    waiting = asyncio.create_task(threads.run(gate.wait, 10))
    await asyncio.sleep(0)
    await asyncio.sleep(0.05)  # the thread takes the first

    threads.close()
    gate.set()

    assert await begun
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_it_can_be_used_again_after_closing(threads):
    threads.close()

    assert await threads.run(int, "7") == 7


def test_a_call_that_never_returns_does_not_hold_up_the_end_of_the_process():
    program = (
        "import asyncio, threading\n"
        "from eyewall.application.concurrency.threads import Threads\n"
        "async def main():\n"
        "    threads = Threads(1)\n"
        "    task = asyncio.create_task(threads.run(threading.Event().wait))\n"
        "    await asyncio.sleep(0.1)\n"
        "    threads.close()\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=20).returncode == 0


async def test_a_pool_is_at_work_until_its_calls_have_come_back(threads):
    gate = threading.Event()
    call = asyncio.create_task(threads.run(gate.wait, 10))
    await asyncio.sleep(0)
    assert threads.at_work

    gate.set()
    await threads.rest()

    assert not threads.at_work
    assert await call


async def test_a_call_that_waits_for_the_loop_is_not_at_work(threads):
    """Else who waits for rest, and what the call waits for, would wait for each other."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def ask():
        return asyncio.run_coroutine_threadsafe(current_call().ask(answer), loop).result()

    call = asyncio.create_task(threads.run(ask))
    await asyncio.sleep(0)
    await threads.rest()
    assert not call.done()

    answer.set_result("done")
    assert await call == "done"


async def test_a_call_that_nobody_awaits_any_more_is_not_at_work(threads):
    gate = threading.Event()
    call = asyncio.create_task(threads.run(gate.wait, 10))
    await asyncio.sleep(0)

    call.cancel()
    await threads.rest()

    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
