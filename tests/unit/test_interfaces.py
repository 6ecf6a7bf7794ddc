# SPDX-License-Identifier: Apache-2.0
"""This machine's addresses, and the meeting place that follows from them."""

import ipaddress
import socket

import pytest

from pmrun.errors import UsageError
from pmrun.launcher import interfaces
from pmrun.launcher.job import Nodes
from pmrun.launcher.meeting_place import plan_meeting, split_main


def test_the_loopback_is_there_and_all_are_numeric():
    found = interfaces.addresses()
    assert interfaces.Address("lo", "127.0.0.1") in found
    for item in found:
        ipaddress.ip_address(item.ip.partition("%")[0])
        assert item.interface in {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize(
    ("wanted", "ip"), [("lo", "127.0.0.1"), ("127.0.0.0/8", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")]
)
def test_an_interface_is_found(wanted, ip):
    assert interfaces.matching(wanted) == ip


@pytest.mark.parametrize("wanted", ["nosuch0", "203.0.113.0/24", "203.0.113.9", "2001:db8:77::/64"])
def test_an_interface_that_is_not_there(wanted):
    with pytest.raises(UsageError, match=r"has none like it; it has lo 127.0.0.1") as caught:
        interfaces.matching(wanted)
    assert "\n" not in str(caught.value)


def test_routes():
    assert interfaces.route_to("127.0.0.1") == "127.0.0.1"
    assert interfaces.route_to("not-an-address") is None
    assert interfaces.is_here("127.0.0.1") and interfaces.is_here("::1") and not interfaces.is_here("203.0.113.9")
    assert interfaces.resolve("localhost") and interfaces.resolve("[::1]") == ["::1"]


def test_a_free_port_is_free_and_out_of_the_way():
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="utf-8") as file:
        low = int(file.read().split()[0])
    for _ in range(20):
        port = interfaces.free_port()
        with socket.socket() as sock:
            sock.bind(("", port))
        assert 20000 <= port < low or low <= 20000


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 0), ("10.0.0.1:4000", "10.0.0.1", 4000), ("fd00::1", "fd00::1", 0),
        ("[fd00::1]", "fd00::1", 0), ("[fd00::1]:4000", "fd00::1", 4000), ("node-0.example.org:1", "node-0.example.org", 1),
    ],
)  # fmt: skip
def test_the_main_address(text, host, port):
    assert split_main(text) == (host, port)


@pytest.mark.parametrize("text", ["a:0", "a:x", "a:65536", "a:"])
def test_a_main_port_that_is_none(text):
    with pytest.raises(UsageError, match="is not a port; write ADDRESS or ADDRESS:PORT"):
        split_main(text)


def test_this_machine_alone_meets_on_its_loopback():
    place = plan_meeting(Nodes(), ["localhost"])
    assert (place.binds, place.here, place.public) == (("127.0.0.1",), (True,), None)
    assert place.addresses(0, [("127.0.0.1", 5)]) == (("127.0.0.1", 5),)


def test_a_way_from_outside_is_told_as_it_was_given():
    place = plan_meeting(Nodes(main="203.0.113.9:4000"), ["localhost"])
    assert place.port == 4000 and place.addresses(0, [("127.0.0.1", 4000)]) == (("203.0.113.9", 4000),)
    place = plan_meeting(Nodes(main="127.0.0.1:4000"), ["203.0.113.9"])
    assert (place.binds, place.port, place.public, place.here) == (("127.0.0.1",), 4000, None, (False,))


def test_a_user_makes_a_host_another_login():
    assert plan_meeting(Nodes(), ["somebody@localhost"]).here == (False,)
