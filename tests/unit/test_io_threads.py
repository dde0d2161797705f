"""Threads of the engine for calls that nobody waits for."""

from __future__ import annotations

import threading
import time

from workers.io_threads import IoThreads


def test_calls_are_carried_out_in_order_by_one_thread() -> None:
    threads, done, is_over = IoThreads(1), list[int](), threading.Event()
    for number in range(100):
        threads.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    threads.submit(is_over.set)
    assert is_over.wait(60)
    threads.stop()
    assert done == list(range(100))


def test_stopping_waits_for_what_has_begun_and_forgets_the_rest() -> None:
    threads, done = IoThreads(1), list[str]()
    begun, may_end = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        may_end.wait(60)
        done.append("first")

    threads.submit(first)
    assert begun.wait(60)
    for _ in range(2):
        threads.submit(lambda: done.append("another"))
    stopper = threading.Thread(target=threads.stop)
    stopper.start()
    while threads._calls.qsize() != 1:  # the word to end is all that is left
        time.sleep(0.001)
    may_end.set()
    stopper.join()
    threads.stop()
    assert done == ["first"]
