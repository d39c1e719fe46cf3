import threading

from lesion_d2.utils.prefetch import prefetch

import pytest


def test_the_next_item_is_made_ahead():
    made, first_taken = [], threading.Event()

    def make():
        for number in range(4):
            made.append(number)
            if number == 1:
                first_taken.set()
            yield number

    items = prefetch(make())
    assert next(items) == 0
    assert first_taken.wait(60)  # the second one, without being asked for
    assert list(items) == [1, 2, 3] == made[1:]


def test_what_fails_ahead_fails_where_it_is_taken():
    def make():
        yield 1
        raise ValueError("damaged")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(items)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()  # and the thread is gone
    assert not any(t.name.startswith("prefetch") for t in threading.enumerate())
