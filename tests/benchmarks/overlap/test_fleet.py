"""Groups wait for places, are verified response by response, and can be aborted."""

from benchmarks.overlap.clock import Clock, Event
from benchmarks.overlap.fleet import Fleet, Group
from benchmarks.overlap.servers import DecodeSpeed, Server, Verifiers


def make_fleet(num_servers=1, places=2, num_verifiers=8):
    clock = Clock()
    servers = [Server(clock, DecodeSpeed(1.0), places) for _ in range(num_servers)]
    return clock, Fleet(clock, servers, Verifiers(clock, num_verifiers))


def test_groups_run_in_the_order_of_their_launch_as_places_become_free():
    clock, fleet = make_fleet()
    flights = [
        fleet.launch(Group(0, lengths, (1.0, 1.0), True), i) for i, lengths in enumerate([(3, 5), (1, 2)])
    ]
    assert not fleet.has_places(1), "one group waits"
    clock.run(flights[1].decided)
    # Both places of the server are free after 5 s; the second group then takes 2 s, and its last verification 1 s.
    assert clock.now == 8.0
    assert fleet.is_empty
    assert fleet.num_tokens == 11 and fleet.busy_s == 7.0


def test_a_group_goes_to_the_server_with_the_most_free_places():
    clock, fleet = make_fleet(num_servers=2)
    flights = [fleet.launch(Group(0, (4, 4), (0.0, 0.0), True), i) for i in range(2)]
    assert [server.num_running for server in fleet.servers] == [2, 2]
    clock.run(flights[1].sampled)
    assert clock.now == 4.0


def test_verification_can_wait_for_a_call():
    clock, fleet = make_fleet()
    flight = fleet.launch(Group(0, (1, 3), (2.0, 2.0), True), 0, verifies_at_once=False)
    clock.run(flight.sampled)
    fleet.verify(flight)
    clock.run(flight.decided)
    assert clock.now == 5.0


def test_aborting_makes_room():
    clock, fleet = make_fleet()
    running, waiting, after = (fleet.launch(Group(0, (100, 100), (0.0, 0.0), True), i) for i in range(3))
    end = Event()
    clock.call(2.0, lambda: (fleet.abort([running, waiting]), fleet.update_weights(7, 0.0)))
    after.sampled.then(end.happen)
    clock.run(end)
    assert clock.now == 102.0
    assert not running.sampled.has_happened and not waiting.sampled.has_happened
    assert (after.version, after.last_version) == (0, 7)
    assert fleet.num_tokens == 204
