import random

from lesion_d2.utils.random_states import numpy_state_kept, random_states_kept

import numpy as np
import pytest
import torch


def _draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_generators_go_on_as_without_the_block_however_it_ends():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [_draw(), _draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert _draw() == expected[0]
    with pytest.raises(KeyError), random_states_kept():
        assert _draw() == expected[1]
        raise KeyError
    assert _draw() == expected[1]


def test_numpys_generator_alone_is_kept():
    random.seed(1), np.random.seed(1)
    with numpy_state_kept():
        first = _draw()
    second = _draw()
    assert first[1] == second[1] and first[0] != second[0]
