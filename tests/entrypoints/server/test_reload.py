"""Which files count as sources, and when one has changed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from eyewall.server import reload
from eyewall.server.reload import snapshot


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_python_file_below_the_folder_counts(tmp_path):
    files = {str(write(tmp_path / name)) for name in ("a.py", "b/c.py", "b/d/e.py")}
    write(tmp_path / "notes.txt")

    assert set(snapshot(tmp_path)) == files


@pytest.mark.parametrize(
    "place", [".git", ".venv", "__pycache__", "node_modules", "build", "x/site-packages"]
)
def test_what_nobody_writes_does_not_count(tmp_path, place):
    write(tmp_path / place / "a.py")

    assert snapshot(tmp_path) == {}


def test_a_virtual_environment_of_any_name_does_not_count(tmp_path):
    write(tmp_path / "env" / "pyvenv.cfg")
    write(tmp_path / "env" / "lib" / "a.py")

    assert snapshot(tmp_path) == {}


def test_a_file_that_came_went_or_changed_is_seen(tmp_path):
    first = snapshot(tmp_path)
    path = write(tmp_path / "a.py", "1")
    second = snapshot(tmp_path)
    write(path, "22")
    third = snapshot(tmp_path)
    os.utime(path, ns=(1, 1))  # as much text as before, saved at another time
    fourth = snapshot(tmp_path)
    path.unlink()

    assert len({str(s) for s in (first, second, third, fourth)}) == 4
    assert snapshot(tmp_path) == first


def test_a_file_that_goes_while_one_looks_does_no_harm(tmp_path):
    """Editors save by renaming; a link may lead nowhere for a moment."""
    (tmp_path / "a.py").symlink_to(tmp_path / "nowhere.py")

    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("program", "status"), [("import sys; sys.exit(3)", 3), ("import os; os.abort()", 134)]
)
def test_the_last_server_s_status_is_the_command_s(tmp_path, monkeypatch, program, status):
    """The process was asked to end while the server had ended by itself."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(reload.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(reload.subprocess.Popen, "terminate", lambda _: None)

    try:
        assert reload.serve([sys.executable, "-c", program], tmp_path) == status
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)


def test_a_file_beside_the_sources_counts_whether_it_is_there_or_not(tmp_path):
    settings = tmp_path / "conf" / "live.toml"
    before = snapshot(tmp_path, [settings])
    write(settings, "workers = 1")

    assert before == {}
    assert set(snapshot(tmp_path, [settings])) == {str(settings)}
