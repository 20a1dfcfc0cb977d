"""What processes say to each other, with threads in their place."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch_jax.cluster import agreed_stop
from adabatch_jax.cluster.agreed_stop import AgreedStop
from adabatch_jax.cluster.agreement import check_alike, from_all, from_first, in_turn
from adabatch_jax.cluster.ending_together import ending_together
from adabatch_jax.cluster.processes import Failure, PeerFailed, Processes, peer_error
from adabatch_jax.system.errors import RestoreError, StorageError, UsageError
from tests.cluster.memory_store import together

COUNTS = [1, 2, 3, 5]
KINDS = [UsageError, RestoreError, StorageError]


def raising(error):
    raise error


@pytest.mark.parametrize("count", COUNTS)
def test_the_first_one_decides_and_is_asked_alone(monkeypatch, count):
    asked = []

    def body(processes):
        values = [{"step": 351, "ü": [1.5, None]}, 7, "x"]
        return [
            from_first(processes, "it", lambda: asked.append(processes.index) or value)
            for value in values
        ] + [from_first(processes, "again", lambda: values)]

    results, _ = together(monkeypatch, count, body)
    values = [{"step": 351, "ü": [1.5, None]}, 7, "x"]
    assert results == [[*values, values]] * count
    assert asked == [0, 0, 0]


@pytest.mark.parametrize("count", COUNTS)
def test_all_know_what_each_says(monkeypatch, count):
    def body(processes):
        return [from_all(processes, "it", lambda: processes.index * k) for k in range(3)]

    results, _ = together(monkeypatch, count, body)
    assert results == [[[k * index for index in range(count)] for k in range(3)]] * count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_is_raised_by_all(monkeypatch, kind, who):
    sentence = "the disk is full."

    def body(processes):
        def make():
            return raising(kind(sentence)) if processes.index == who else 1

        if who == 0:
            return from_first(processes, "it", make)
        return from_all(processes, "it", make)

    results, _ = together(monkeypatch, 3, body)
    assert [type(error) for error in results] == [kind] * 3
    assert [str(error) for error in results] == [
        sentence if index == who else f"process {who}: {sentence}" for index in range(3)
    ]


def test_an_error_that_nobody_expects_asks_the_others_for_a_restart(monkeypatch):
    def body(processes):
        return from_all(
            processes, "it", lambda: raising(KeyError("x")) if processes.index else None
        )

    first, second = together(monkeypatch, 2, body)[0]
    assert isinstance(second, KeyError)
    assert isinstance(first, PeerFailed) and first.exit_code == 42
    assert str(first) == "process 1: KeyError: 'x'"


@pytest.mark.parametrize("count", COUNTS)
def test_different_facts_are_named_by_all(monkeypatch, count):
    def body(processes):
        facts = {"the seed": 5, "jax": "0.10.2"}
        check_alike(processes, "run", lambda: facts)
        others = facts | ({"lr": "0.1"} if processes.index == 2 else {})
        check_alike(processes, "run", lambda: others)

    for error in together(monkeypatch, count, body)[0]:
        if count < 3:
            assert error is None
        else:
            assert isinstance(error, UsageError)
            assert str(error) == (
                "process 2 has 0.1 for lr, and process 0 has nothing; all processes of a run must "
                "be started alike."
            )


def test_who_is_first_on_a_machine_prepares_what_the_rest_finds(monkeypatch):
    """Six processes on three machines, numbered across them."""
    log, lock = [], threading.Lock()
    machines = threading.local()
    monkeypatch.setattr("adabatch_jax.cluster.agreement.socket.gethostname", lambda: machines.name)

    def body(processes):
        machines.name = f"n{processes.index % 3}"

        def make():
            with lock:
                log.append(processes.index)
            return processes.index

        return in_turn(processes, make)

    results, _ = together(monkeypatch, 6, body)
    assert results == list(range(6))
    assert log[0] == 0
    assert sorted(log[1:3]) == [1, 2]
    assert sorted(log[3:]) == [3, 4, 5]


def test_an_error_of_who_prepares_ends_those_that_wait(monkeypatch):
    def body(processes):
        def make():
            if processes.index == 0:
                processes.say_failure("no such folder.", 2)
                raise UsageError("no such folder.")

        in_turn(processes, make)

    first, *others = together(monkeypatch, 3, body)[0]
    assert str(first) == "no such folder."
    assert {(type(e), str(e)) for e in others} == {(UsageError, "process 0: no such folder.")}


def test_the_first_failure_is_told_to_all(monkeypatch):
    def body(processes):
        barrier.wait()
        for turn in range(2):
            if processes.index == turn:
                processes.say_failure(f"reason {turn}", 5)
            barrier.wait()
        return processes.failure()

    barrier = threading.Barrier(2)
    assert together(monkeypatch, 2, body)[0] == [Failure(0, "reason 0", 5)] * 2


@pytest.mark.parametrize(
    "code, kind", [(2, UsageError), (4, RestoreError), (5, StorageError), (1, PeerFailed)]
)
def test_a_process_ends_by_the_reason_of_the_one_that_failed(monkeypatch, code, kind):
    """Its own error, of connections that broke, only follows from that."""

    def body(processes):
        if processes.index == 1:
            processes.say_failure("something else.", code)
            return processes.wait_to_end()
        with ending_together(processes):
            raise ValueError("Gloo all-reduce failed: Connection closed by peer")

    error = together(monkeypatch, 2, body)[0][0]
    assert type(error) is kind and str(error) == str(
        peer_error(Failure(1, "something else.", code))
    )


def test_broken_connections_without_a_reason_mean_that_a_process_is_gone(monkeypatch):
    monkeypatch.setattr("adabatch_jax.cluster.ending_together._REASON_SECONDS", 0.3)

    def body(processes):
        with ending_together(processes):
            raise ValueError("Gloo all-reduce failed: Connection closed by peer")

    error = together(monkeypatch, 2, lambda p: None if p.index else body(p))[0][0]
    assert type(error) is PeerFailed and error.exit_code == 42


def test_a_process_whose_function_exits_tells_the_others(monkeypatch):
    """Else they would wait for it, and it for them at its end."""

    def body(processes):
        if processes.index == 0:
            with pytest.raises(SystemExit), ending_together(processes):
                raise SystemExit(3)
        processes.barrier("it is told")
        return processes.failure()

    monkeypatch.setattr("adabatch_jax.cluster.processes._OTHERS_SECONDS", 0.1)
    monkeypatch.setattr(Processes, "barrier", lambda *_: barrier.wait())
    barrier = threading.Barrier(2)
    assert together(monkeypatch, 2, body)[0] == [Failure(0, "SystemExit: 3", 3)] * 2


def test_ctrl_c_that_all_hear_is_each_ones_own_end(monkeypatch):
    def body(processes):
        if processes.index == 0:
            return processes.say_failure("KeyboardInterrupt.", 130)
        with pytest.raises(KeyboardInterrupt), ending_together(processes):
            while processes.failure() is None:
                time.sleep(0.01)
            raise KeyboardInterrupt

    assert together(monkeypatch, 2, body)[0] == [None, None]


def test_one_that_was_killed_is_waited_for_once(monkeypatch):
    monkeypatch.setattr("adabatch_jax.cluster.processes._OTHERS_SECONDS", 0.3)

    def body(processes):
        if processes.index:
            return None
        processes.say_failure("another process is gone.", 42)
        began = time.monotonic()
        for _ in range(3):  # by an error, at the program's end, at once
            processes.wait_to_end()
        return time.monotonic() - began

    assert 0.3 <= together(monkeypatch, 2, body)[0][0] < 0.6


def test_a_process_that_waits_for_ever_is_ended_when_another_fails(monkeypatch):
    """As one that waits for devices; by the other's code where a restart would not help."""
    monkeypatch.setattr("adabatch_jax.cluster.ending_together._OWN_END_SECONDS", 0.2)
    is_ended, codes = threading.Event(), []

    def end_now(processes, code):
        codes.append((processes.index, code))
        is_ended.set()

    monkeypatch.setattr(Processes, "end_now", end_now)

    def body(processes):
        if processes.index == 1:
            processes.say_failure("the disk is full.", 5)
        else:
            with ending_together(processes):
                assert is_ended.wait(10)

    together(monkeypatch, 2, body)
    assert codes == [(0, 5)]


class Places:
    """Has no process be more than so many places ahead of another, as collectives do."""

    def __init__(self, count, ahead):
        self._places, self._ahead = [0] * count, ahead
        self._moved = threading.Condition()

    def move(self, index):
        with self._moved:
            self._places[index] += 1
            self._moved.notify_all()
            self._moved.wait_for(
                lambda: self._places[index] <= min(self._places) + self._ahead, timeout=10
            )

    def leave(self, index):
        with self._moved:
            self._places[index] = 10**9
            self._moved.notify_all()


@st.composite
def wishes(draw):
    count = draw(st.integers(2, 4))
    wish = st.one_of(st.none(), st.integers(0, 60))
    return draw(st.lists(wish, min_size=count, max_size=count)), draw(st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(wishes(), st.sampled_from([0.001, 0.1, 0.3, 2.0]))
def test_all_stop_at_the_same_place_soon_after_the_first_wish(wished, seconds_per_place):
    """`wished`: the place at which each process wants to stop, if it does; the clock is theirs."""
    wished, ahead = wished
    count, last = len(wished), 400

    def body(processes):
        at = [0.0]
        stop = AgreedStop(processes, lambda: at[0])
        wish, passed = wished[processes.index], []
        for place in range(last):
            at[0] += seconds_per_place
            is_wished = wish is not None and place >= wish
            reason = stop.reason(f"SIGTERM of {processes.index}" if is_wished else None)
            if reason is not None:
                places.leave(processes.index)
                return place, reason
            passed.append(place)
            places.move(processes.index)
        return None

    with pytest.MonkeyPatch.context() as monkeypatch:
        places = Places(count, ahead)
        results, store = together(monkeypatch, count, body)
    assert not [r for r in results if isinstance(r, Exception)], results
    assert len(set(results)) == 1, results
    first = min((w for w in wished if w is not None), default=None)
    if first is None:
        assert results[0] is None
        return
    place, reason = results[0]
    assert place >= first, "not before anybody wanted to"
    assert wished[int(reason[-1])] is not None
    # The first process says ahead for half a second, a quarter of it at least; twice that, or
    # twice as many places as there were before, may be under way.
    lease = max(2, 2 * agreed_stop._LEASE_SECONDS / seconds_per_place)
    assert place <= first + 2 * min(lease, 2 * (first + 2)) + 2 * ahead + 1


def test_one_stop_after_the_other(monkeypatch):
    """Each begins anew, as each call of `fit` does."""

    def body(processes):
        stopped = []
        for turn in range(3):
            stop = AgreedStop(processes)
            for place in range(10_000):
                if stop.reason("x" if processes.index == turn % 2 and place >= turn else None):
                    stopped.append(place)
                    break
                barrier.wait(10)
        return stopped

    barrier = threading.Barrier(2)
    first, second = together(monkeypatch, 2, body)[0]
    assert first == second and len(first) == 3


def test_what_is_passed_without_a_word_costs_the_store_nothing(monkeypatch):
    """Fast places are let pass by hundreds: three messages for some half a second."""

    def body(processes):
        at = [0.0]
        stop = AgreedStop(processes, lambda: at[0])
        for place in range(5_000):
            at[0] += 0.0005
            stop.reason(None)

    _, store = together(monkeypatch, 2, body)
    assert store.num_requests < 150
