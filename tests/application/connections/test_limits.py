import pytest

from eyewall.application.connections.limits import ConnectionLimits, counted_as
from eyewall.domain.errors import Overloaded


def test_a_node_has_so_many_slots_and_no_more():
    places = ConnectionLimits(2, None)
    first = places.acquire("10.0.0.1")
    places.acquire(None)

    with pytest.raises(Overloaded, match="node"):
        places.acquire("10.0.0.2")
    first.release()
    places.acquire("10.0.0.2")
    assert len(places) == 2


def test_an_address_has_so_many_slots_and_no_more():
    places = ConnectionLimits(None, 2)
    first = places.acquire("10.0.0.1")
    places.acquire("10.0.0.1")

    with pytest.raises(Overloaded, match="address"):
        places.acquire("10.0.0.1")
    places.acquire("10.0.0.2")
    first.release()
    places.acquire("10.0.0.1")


def test_a_client_that_was_refused_for_its_address_has_none_of_the_node_s_slots():
    places = ConnectionLimits(2, 1)
    places.acquire("10.0.0.1")
    with pytest.raises(Overloaded, match="address"):
        places.acquire("10.0.0.1")

    places.acquire("10.0.0.2")


def test_a_place_is_given_back_once():
    places = ConnectionLimits(2, 2)
    place, other = places.acquire("10.0.0.1"), places.acquire("10.0.0.1")
    place.release()
    place.release()

    assert len(places) == 1
    other.release()
    assert len(places) == 0


def test_without_an_address_only_the_node_s_slots_count():
    places = ConnectionLimits(None, 1)

    assert [places.acquire(None) for _ in range(3)]


def test_nothing_is_kept_of_an_address_that_has_gone():
    places = ConnectionLimits(None, 1)
    for n in range(10):
        places.acquire(f"10.0.0.{n}").release()

    assert not places._by_address


def test_nothing_is_counted_by_address_without_a_limit():
    places = ConnectionLimits(None, None)
    taken = [places.acquire("10.0.0.1") for _ in range(3)]

    assert not places._by_address
    for place in taken:
        place.release()
    assert len(places) == 0


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("somebody", "somebody"),
    ],
)
def test_an_ipv6_address_is_counted_with_its_network(ip, name):
    assert counted_as(ip) == name
