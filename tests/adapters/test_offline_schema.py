"""The file of the offline store: who may open it, and what it says when it may not."""

import sqlite3
from contextlib import closing

import pytest

from eyewall.adapters.offline.schema import VERSION, prepare
from eyewall.adapters.offline.sqlite import SqliteOffline
from eyewall.domain.errors import Unavailable
from eyewall.testing.contracts.offline import ids, opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "offline.db"


def test_a_new_file_gets_the_tables_once(path):
    for _ in range(2):
        with closing(prepare(path, 1.0)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)


async def test_a_file_of_a_newer_schema_is_left_alone(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")

    with pytest.raises(Unavailable, match=f"newer version.*{VERSION + 1}"):
        await SqliteOffline(path).open()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_what_is_no_database_is_refused(path):
    path.write_text("a page of my diary, which nobody should write over" * 100)

    with pytest.raises(Unavailable, match="not a database"):
        await SqliteOffline(path).open()

    assert path.read_text().startswith("a page of my diary")


async def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(Unavailable, match=r"missing.offline\.db can't be used: .*unable to open"):
        await SqliteOffline(tmp_path / "missing" / "offline.db").open()


async def test_a_file_that_can_only_be_read_is_told(path, monkeypatch):
    """As on a file system that is mounted so, which not even root can write to."""
    path.touch()
    connect = sqlite3.connect
    monkeypatch.setattr(
        "eyewall.adapters.offline.schema.sqlite3.connect",
        lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options),
    )

    with pytest.raises(Unavailable, match="readonly"):
        await SqliteOffline(path).open()


async def test_a_store_that_could_not_be_opened_may_be_tried_again(path):
    path.write_text("not yet" * 1000)
    store = SqliteOffline(path)
    with pytest.raises(Unavailable):
        await store.open()
    path.unlink()

    async with opened(store):
        assert await ids(store) == []
