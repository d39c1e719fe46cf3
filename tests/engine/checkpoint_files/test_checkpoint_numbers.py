"""Weights that would make a model find nothing, or by chance."""

from lesion_d2.engine import LesionCheckpointer
from lesion_d2.engine.checkpoint_files.checkpointer import check_weights, load_trained

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("for_training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.fill_(float("nan")),
        lambda w: w.index_put_((torch.tensor(1),), torch.tensor(float("-inf"))),
        lambda w: w.to(torch.int8),
        lambda w: w.to(torch.complex64),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path, change, for_training):
    weights = nn.BatchNorm1d(3).state_dict()
    path = str(tmp_path / "a.pth")
    torch.save({"model": {**weights, "running_var": change(weights["running_var"])}}, path)
    model = nn.BatchNorm1d(3)
    message = r"a\.pth: found 1 of the model's weights that are .* such as running_var"
    with pytest.raises(ValueError, match=message):
        check_weights(path, model, for_training=for_training)
    with pytest.raises(ValueError, match=message):
        if for_training:
            LesionCheckpointer(model).load(path)
        else:
            load_trained(LesionCheckpointer(model), path)
    assert torch.equal(model.running_var, torch.ones(3))


def test_counts_and_weights_of_others_may_be_what_they_are(tmp_path):
    weights = nn.BatchNorm1d(3).state_dict()
    path = str(tmp_path / "a.pth")
    others = {"other": torch.tensor(float("nan")), "weight": torch.zeros(3, dtype=torch.bfloat16)}
    torch.save({"model": {**weights, **others}}, path)
    model = nn.BatchNorm1d(3)
    load_trained(LesionCheckpointer(model), path)
    assert torch.equal(model.weight, torch.zeros(3))


@pytest.mark.parametrize("query", ["", "?matching_heuristics", "?matching_heuristics=True"])
@pytest.mark.parametrize("for_training", [True, False])
def test_weights_that_fit_nothing_are_refused_also_by_heuristics(tmp_path, query, for_training):
    path = str(tmp_path / "a.pth")
    torch.save({"model": {"foreign": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match=r"a\.pth: found none of the model's weights"):
        check_weights(path + query, nn.BatchNorm1d(3), for_training=for_training)
    with pytest.raises(ValueError, match=r"a\.pth: found none of the model's weights"):
        LesionCheckpointer(nn.BatchNorm1d(3)).load(path + query)
