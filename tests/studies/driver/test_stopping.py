"""Signals that ask a study to stop."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from memarch.studies.driver.stopping import FINISH, GO_ON, HALT, Stopping


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("numbers", "level"),
    [
        ([], GO_ON),
        ([signal.SIGINT], FINISH),
        ([signal.SIGINT, signal.SIGINT], HALT),
        ([signal.SIGTERM], HALT),
        ([signal.SIGINT, signal.SIGTERM], HALT),
    ],
)
def test_a_signal_more_stops_harder(numbers, level):
    stopping = Stopping()
    before = signal.getsignal(signal.SIGINT)
    with stopping.on(signal.SIGINT), stopping.on(signal.SIGTERM):
        send(*numbers)
    assert (stopping.level, stopping.asked) == (level, bool(numbers))
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_come_at_once_are_counted():
    stopping, ctrl_c = Stopping(), f"kill -INT {os.getpid()}"
    with stopping.on(signal.SIGINT):
        other = subprocess.Popen(["sh", "-c", f"{ctrl_c}; sleep 0.1; {ctrl_c}; sleep 0.1"])
        while other.poll() is None:
            sum(range(10**8))  # no signal is handled before the end of this
    assert stopping.level == HALT


def test_the_third_time_ends_it():
    stopping = Stopping()
    with pytest.raises(KeyboardInterrupt), stopping.on(signal.SIGINT):
        send(signal.SIGINT, signal.SIGINT, signal.SIGINT)
    assert stopping.level == HALT


def test_a_problem_stops_by_its_first_reason():
    stopping = Stopping()
    stopping.because("one", HALT)
    stopping.because("two")
    assert (stopping.reason, stopping.level, stopping.asked) == ("one", HALT, False)
