"""Ctrl-C is held back until somebody can act on it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from kserve_local.cli.interrupts import held_back


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_comes_at_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with held_back():
            press()
            done.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_comes_where_it_is_heard_and_once() -> None:
    done = []
    with held_back() as hear:
        press()
        done.append("started")
        with pytest.raises(KeyboardInterrupt), hear():
            done.append("never")
        press()
        done.append("cleaned")
        with pytest.raises(KeyboardInterrupt), hear():
            done.append("never")
    assert done == ["started", "cleaned"]


def test_it_interrupts_a_place_that_waits() -> None:
    def wait() -> None:
        with held_back() as hear, hear():
            press()
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        wait()


def test_an_error_is_not_hidden_by_it() -> None:
    def fail() -> None:
        with held_back():
            press()
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
