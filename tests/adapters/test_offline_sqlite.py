"""The offline store in a file: what every one promises, and what can happen to a file."""

import asyncio
import resource
import sqlite3
import threading
from contextlib import closing, contextmanager

import pytest

from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.domain.errors import Unavailable
from eyewall.domain.identity import UserId
from eyewall.testing.contracts.offline import ADA, BOB, OfflineContract, ids, message, opened


class TestSqliteOffline(OfflineContract):
    @pytest.fixture
    def connect(self, tmp_path, clock):
        return lambda **limits: SqliteOffline(tmp_path / "offline.db", clock=clock, **limits)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "offline.db"


@contextmanager
def locked(path):
    """Another process is writing, and does not finish."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def full(size):
    """No file may grow beyond ``size`` bytes: to a program, a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_is_reported_as_stored_is_in_the_file(path):
    async with opened(SqliteOffline(path)) as store:
        await store.store(ADA, message("1"))

        async with opened(SqliteOffline(path)) as after_a_crash:
            assert await ids(after_a_crash) == ["1"]


async def test_a_power_cut_loses_nothing_that_was_reported(path):
    async with opened(SqliteOffline(path)) as store:
        found = await store._do(
            lambda tables: [
                tables._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ],
            writes=False,
        )

    assert found == ["wal", 2]


async def test_a_burst_is_one_transaction(path):
    async with opened(SqliteOffline(path)) as store:
        hold, begun = threading.Event(), threading.Event()
        batches = []
        transact = store._transact
        store._transact = lambda db, calls: (batches.append(len(calls)), transact(db, calls))
        first = asyncio.ensure_future(store._do(lambda tables: (begun.set(), hold.wait(10))))
        await asyncio.to_thread(begun.wait, 10)
        burst = [asyncio.ensure_future(store.store(ADA, message(str(n)))) for n in range(100)]
        await asyncio.sleep(0)
        hold.set()
        await asyncio.gather(first, *burst)

    assert batches == [1, 100]


async def test_a_locked_file_is_unavailable_until_it_is_free(path):
    async with opened(SqliteOffline(path, busy_timeout=0.05)) as store:
        await store.store(ADA, message("1"))
        with locked(path):
            with pytest.raises(Unavailable, match="locked"):
                await store.store(ADA, message("2"))
            assert await ids(store) == ["1"], "who only reads is not in the way"

        await store.store(ADA, message("3"))

        assert await ids(store) == ["1", "3"]


async def test_a_full_disk_is_unavailable_until_there_is_room(path):
    async with opened(SqliteOffline(path)) as store:
        await store.store(ADA, message("1"))
        with full(64 << 10):
            with pytest.raises(Unavailable):
                await store.store(ADA, message("2", size=1 << 20))
            assert await ids(store) == ["1"]

        await store.store(ADA, message("3", size=1 << 20))

        assert await ids(store) == ["1", "3"]


async def test_a_call_that_can_not_be_done_harms_no_other(path):
    """A lone surrogate is no text; the others of its transaction are done."""
    async with opened(SqliteOffline(path)) as store:
        results = await asyncio.gather(
            store.store(ADA, message("1")),
            store.store(UserId("\ud800"), message("2")),
            store.store(ADA, message("3")),
            return_exceptions=True,
        )

        assert [type(result) for result in results] == [list, Unavailable, list]
        assert await ids(store) == ["1", "3"]


async def test_too_many_calls_are_refused(path, monkeypatch):
    monkeypatch.setattr("eyewall.adapters.offline.sqlite.MAX_WAITING_CALLS", 2)
    async with opened(SqliteOffline(path)) as store:
        hold, begun = threading.Event(), threading.Event()
        first = asyncio.ensure_future(store._do(lambda tables: (begun.set(), hold.wait(10))))
        await asyncio.to_thread(begun.wait, 10)
        more = [asyncio.ensure_future(store.store(ADA, message(str(n)))) for n in range(3)]
        await asyncio.sleep(0)
        hold.set()
        results = await asyncio.gather(first, *more, return_exceptions=True)

    assert [isinstance(result, Unavailable) for result in results] == [False, False, False, True]


async def test_a_closed_store_is_unavailable(path):
    store = SqliteOffline(path)
    with pytest.raises(Unavailable, match="closed"):
        await store.store(ADA, message("1"))
    async with opened(store):
        pass

    with pytest.raises(Unavailable, match="closed"):
        await ids(store)


async def test_several_servers_share_it(path):
    store = SqliteOffline(path)
    async with opened(store):
        async with opened(store):
            pass

        await store.store(BOB, message("1"))
        assert await ids(store, BOB) == ["1"]


async def test_closing_leaves_no_thread(path):
    store = SqliteOffline(path)
    async with opened(store):
        thread = store._thread
        assert thread is not None

    assert not thread.is_alive()


async def test_what_was_asked_for_before_the_close_is_done(path):
    store = SqliteOffline(path)
    await store.open()
    asked = asyncio.ensure_future(store.store(ADA, message("1")))
    await asyncio.sleep(0)
    await store.close()
    await asked

    async with opened(store):
        assert await ids(store) == ["1"]


@pytest.mark.parametrize("limit", ["max_messages", "max_bytes", "max_age"])
def test_a_limit_of_nothing_is_refused(path, limit):
    with pytest.raises(ValueError, match=limit):
        SqliteOffline(path, **{limit: 0})
