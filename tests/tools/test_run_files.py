"""Files of a run of a grid."""

from dataclasses import dataclass

from lesion_d2.tools.common.run_files import RunFiles

import pytest


@dataclass
class Result:
    score: float


def test_a_run_that_was_begun_with_old_names_of_keys_goes_on(tmp_path):
    def files(*opts):
        return RunFiles(tmp_path, {"seed": 1, "opts": list(opts)}, "a.yaml", Result)

    files("TEST.KEEP_BEST", "2").begin()
    assert files("TEST.NUM_BEST_CHECKPOINTS", "2").result() is None
    files("TEST.KEEP_BEST", "2").end(Result(0.5))
    assert files("TEST.NUM_BEST_CHECKPOINTS", "2").result() == Result(0.5)
    for others in (["TEST.NUM_BEST_CHECKPOINTS", "3"], []):
        with pytest.raises(ValueError, match=r"found a run with other options \(opts "):
            files(*others).result()
