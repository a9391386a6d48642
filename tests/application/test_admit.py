import pytest

from eyewall.application.admit import Admission, published
from eyewall.domain.envelope import Envelope
from eyewall.domain.errors import Forbidden, ValidationError


def answers(fn, *, later):
    """``fn`` as it is, or as one whose answer has to be awaited."""

    async def waits(*args):
        return fn(*args)

    return waits if later else fn


def is_good(topic, event, data):
    if data != "good":
        raise ValidationError({"data": ["not good"]})


@pytest.fixture
async def conn(node):
    return (await node.connect("ada")).conn


async def outcome(admission, conn, message):
    try:
        waits = admission.ask(conn, message)
        if waits is not None:
            await waits
    except (Forbidden, ValidationError) as error:
        return type(error)
    return None


@pytest.mark.parametrize("access_waits", [False, True])
@pytest.mark.parametrize("validator_waits", [False, True])
@pytest.mark.parametrize(
    ("topic", "data", "expected"),
    [
        ("open", "good", None),
        ("open", "bad", ValidationError),
        ("shut", "good", Forbidden),
        ("shut", "bad", Forbidden),
    ],
)
async def test_who_has_to_wait_decides_as_who_has_not(
    conn, access_waits, validator_waits, topic, data, expected
):
    admission = Admission(
        answers(lambda meta, topic, event: topic == "open", later=access_waits),
        answers(is_good, later=validator_waits),
    )

    assert await outcome(admission, conn, Envelope(topic, data=data)) is expected


@pytest.mark.parametrize("falsy", [None, 0, ""])
async def test_whatever_is_not_true_is_a_no(conn, falsy):
    admission = Admission(lambda meta, topic, event: falsy, None)

    assert await outcome(admission, conn, Envelope("t")) is Forbidden


async def test_nothing_is_awaited_that_is_decided(conn):
    decided = Admission(lambda meta, topic, event: True, is_good)

    assert decided.ask(conn, Envelope("t", data="good")) is None
    assert Admission(None, None).ask(conn, Envelope("t")) is None


@pytest.mark.parametrize(
    ("data", "means"),
    [
        ({"room": "r"}, ("room:r", "message")),
        ({"room": "r", "event": "said"}, ("room:r", "said")),
        ({"room": 5, "event": 5}, ("system:publish", "message")),
        ({}, ("system:publish", "message")),
        ("r", ("system:publish", "message")),
    ],
)
def test_what_a_publish_means_to_the_access_controller(data, means):
    """It is asked about what the room will see: the room's topic, the event inside."""
    assert published(Envelope("system:publish", data=data)) == means
