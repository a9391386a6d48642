"""The contracts of the ports, used as the author of an adapter uses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import eyewall.testing.contracts as contracts

BROKEN = """
import json

import pytest

from eyewall import InvalidEnvelope, MemoryPubSub, MemoryState
from eyewall.adapters.codec.json import JsonCodec
from eyewall.adapters.history import MemoryHistory
from eyewall.adapters.offline.memory import MemoryOffline
from eyewall.testing.contracts import (
    BusContract, CodecContract, HistoryContract, OfflineContract, StateContract
)


class LossyBus(MemoryPubSub):
    def publish(self, channel, payload):
        if payload != b"77":
            return super().publish(channel, payload)


class TestLossyBus(BusContract):
    @pytest.fixture
    def connect(self):
        bus = LossyBus()
        return lambda: bus


class StubbornHistory(MemoryHistory):
    async def remove(self, room_id):
        pass


class TestStubbornHistory(HistoryContract):
    @pytest.fixture
    def connect(self):
        history = StubbornHistory()
        return lambda: history


class GenerousOffline(MemoryOffline):
    async def claim(self, user_id, owner, ttl):
        return owner


class TestGenerousOffline(OfflineContract):
    @pytest.fixture
    def connect(self, clock):
        made = []
        def connect(**limits):
            made[:] = made or [GenerousOffline(clock=clock, **limits)]
            return made[0]
        return connect


class ForgetfulState(MemoryState):
    async def release(self, node, now):
        pass


class TestForgetfulState(StateContract):
    @pytest.fixture
    def connect(self):
        state = ForgetfulState()
        return lambda: state

    @pytest.fixture
    def advance(self):
        pytest.skip("its time is the real one")


class AnonymousCodec(JsonCodec):
    def decode(self, payload):
        try:
            return super().decode(payload)
        except InvalidEnvelope as error:
            raise InvalidEnvelope(str(error)) from None


class TestAnonymousCodec(CodecContract):
    @pytest.fixture
    def codec(self):
        return AnonymousCodec()

    @pytest.fixture
    def pack(self):
        return lambda value: json.dumps(value).encode()

    @pytest.fixture
    def unpack(self):
        return json.loads
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of five adapters that break one promise each."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    (folder / "test_adapters.py").write_text(BROKEN)
    about = "in_order or epoch or claim or reaches or as_it_was or refusal"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", about, "test_adapters.py"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("suite", "tests"),
    [
        ("TestLossyBus", {"test_payloads_of_one_sender_arrive_in_order"}),
        ("TestStubbornHistory", {"test_a_room_that_was_removed_begins_a_new_epoch"}),
        (
            "TestGenerousOffline",
            {
                "test_one_at_a_time_has_the_claim",
                "test_a_claim_can_be_given_back_by_its_owner_only",
                "test_a_claim_lapses_by_itself",
                "test_claiming_again_renews",
                "test_expiring_keeps_the_claims_that_stand",
            },
        ),
        (
            "TestAnonymousCodec",
            {"test_a_refusal_names_the_message_as_far_as_it_can_be_read"},
        ),
        ("TestForgetfulState", {"test_a_node_that_ends_in_order_is_out_at_once"}),
    ],
)
def test_a_promise_that_is_not_kept_is_found(report, suite, tests):
    """And nothing else: the other tests that are run are about other promises."""
    found = re.findall(rf"^FAILED test_adapters\.py::{suite}::(\w+)", report, re.MULTILINE)

    assert set(found) == tests


def test_a_failure_says_what_was_there_instead(report):
    """As in tests of one's own, though the suite stands in an installed package."""
    assert "assert 'n2' == 'n1'" in report


def test_the_test_kit_does_without_pytest():
    """It may be used with any runner; only the contracts are written for pytest."""
    code = "import sys, eyewall.testing; assert 'pytest' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_every_suite_can_be_imported_by_its_name():
    assert set(contracts.__all__) == {
        f"{port}Contract" for port in ("Bus", "Codec", "History", "Offline", "State")
    }
