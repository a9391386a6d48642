"""Sessions that are kept: found by name, for a time, and never too many."""

from eyewall.domain import session as module
from eyewall.domain.request_log import RequestLog
from eyewall.domain.session import KeptSessions, Session, conn_of, name_of, same


def kept(*names, until=10.0):
    sessions = KeptSessions()
    for name in names:
        sessions.keep(name, Session("ada"), until)
    return sessions


def asked(size):
    log = RequestLog()
    log.register("r1")
    log.record("r1", b"x" * size)
    return Session("ada", request_log=log)


def test_a_name_says_which_connection_it_began_with():
    assert conn_of(name_of("secret", "abc@node.example")) == "abc@node.example"
    assert conn_of("nothing of ours") == ""


def test_names_are_the_same_or_not():
    assert same("a.b", "a.b")
    assert not same("a.b", "a.c")
    assert not same("é\ud800", "a")


def test_a_session_is_found_until_its_time_is_over():
    sessions = kept("a")

    assert sessions.find("a", 9.9) is not None
    assert sessions.find("a", 10.0) is None
    assert sessions.find("b", 0.0) is None


def test_what_is_over_is_dropped():
    sessions = kept("a", "b", until=10.0)
    sessions.keep("c", Session("bob"), 20.0)

    assert sessions.next_due() == 10.0
    sessions.expire(10.0)

    assert len(sessions) == 1
    assert sessions.next_due() == 20.0


def test_of_too_many_the_oldest_go(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", 2)

    sessions = kept("a", "b", "c")

    assert [name for name, _, _ in sessions.all(0.0)] == ["b", "c"]


def test_of_too_much_the_oldest_go(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 250)
    sessions = KeptSessions()

    for name in "abc":
        sessions.keep(name, asked(100), 10.0)
    of_two = [name for name, _, _ in sessions.all(0.0)]
    sessions.keep("d", asked(1000), 10.0)

    assert of_two == ["b", "c"]
    assert [name for name, _, _ in sessions.all(0.0)] == ["d"]


def test_keeping_again_counts_once(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 250)
    sessions = KeptSessions()

    for _ in range(9):
        sessions.keep("a", asked(100), 10.0)
    sessions.keep("b", asked(100), 10.0)

    assert len(sessions) == 2


def test_what_is_left_of_the_time_is_told():
    sessions = kept("a", until=10.0)

    assert [left for _, _, left in sessions.all(4.0)] == [6.0]
    assert list(sessions.all(10.0)) == []
    sessions.clear()
    assert sessions.next_due() is None
