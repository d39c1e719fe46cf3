from lesion_d2.engine.resuming.process_state import process_state, restore_process_state
from lesion_d2.modeling import MeanTeacher

from torch import nn


def test_counts_of_pseudo_labels_are_restored_also_from_checkpoints_of_earlier_versions():
    model = MeanTeacher(nn.Identity())
    counts = {"images": 3, "pseudo_labels": 2, "score": 1.9}
    model.counts.update(counts)
    state = process_state(model)
    assert state["pseudo_labels"] == counts
    earlier = {name: value for name, value in state.items() if name != "pseudo_labels"}
    earlier["mined"] = {"images": 3, "mined": 2, "score": 1.9}
    for saved in (state, earlier):
        model.counts.update(images=8)
        restore_process_state(model, saved)
        assert model.counts == counts
