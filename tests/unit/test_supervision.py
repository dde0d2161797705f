from streams.local.supervision import (
    LONGEST_DELAY_S,
    MAX_DEATHS_BY_SIGNAL,
    MAX_UNREADY_DEATHS,
    SETTLED_S,
    Deaths,
    GiveUp,
    StartAgain,
)


def deaths(*ready_for_s: float | None) -> Deaths:
    result = Deaths()
    for each_s in ready_for_s:
        result = result.another(each_s)
    return result


def test_the_delay_doubles_with_each_death_in_a_row() -> None:
    delays = [deaths(*[1.0] * number).verdict for number in (1, 2, 3, 4)]
    assert delays == [StartAgain(0.5), StartAgain(1.0), StartAgain(2.0), StartAgain(4.0)]


def test_the_delay_has_a_bound_however_often_a_worker_dies() -> None:
    assert deaths(*[1.0] * 500).verdict == StartAgain(LONGEST_DELAY_S)


def test_a_worker_that_was_settled_begins_with_the_shortest_delay_again() -> None:
    assert deaths(1.0, 1.0, 1.0, SETTLED_S).verdict == StartAgain(0.5)


def test_a_worker_that_is_never_ready_is_given_up() -> None:
    assert isinstance(deaths(*[None] * (MAX_UNREADY_DEATHS - 1)).verdict, StartAgain)
    assert deaths(*[None] * MAX_UNREADY_DEATHS).verdict == GiveUp()


def test_a_worker_that_signals_kill_is_given_up_much_later() -> None:
    killed = Deaths()
    for _ in range(MAX_DEATHS_BY_SIGNAL - 1):
        killed = killed.another(None, by_signal=True)
    assert killed.verdict == StartAgain(LONGEST_DELAY_S)
    assert killed.another(None, by_signal=True).verdict == GiveUp()
    assert killed.another(0.1, by_signal=True).num_unready == 0


def test_having_been_ready_once_in_between_keeps_a_worker_from_being_given_up() -> None:
    lives = [None] * (MAX_UNREADY_DEATHS - 1) + [0.1] + [None] * (MAX_UNREADY_DEATHS - 1)
    assert deaths(*lives).verdict == StartAgain(LONGEST_DELAY_S)
