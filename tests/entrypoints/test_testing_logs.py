"""A logger that remembers."""

import pytest

from eyewall.testing import RecordingLogger


def test_it_remembers_levels_events_and_fields():
    logs = RecordingLogger()
    logs.debug("seen", n=1)
    logs.info("seen", n=2)
    logs.warning("odd")
    logs.error("wrong", why="it broke")

    assert logs.of("warning") == ["odd"]
    assert logs.fields("seen") == {"n": 2}
    assert logs.entries[-1] == ("error", "wrong", {"why": "it broke"})
    with pytest.raises(KeyError):
        logs.fields("never")
