import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.structures import ImageList3D

import pytest
import torch


def test_volumes_are_padded_at_their_ends_to_multiples():
    one, two = torch.rand(1, 3, 9, 7), torch.rand(1, 5, 8, 8)
    images = ImageList3D.from_tensors([one, two], (4, 8, 2), pad_value=7.0)
    assert images.tensor.shape == (2, 1, 8, 16, 8)
    assert images.image_sizes == [(3, 9, 7), (5, 8, 8)]
    assert torch.equal(images[0], one) and torch.equal(images[1], two)
    padding = images.tensor.numel() - one.numel() - two.numel()
    assert (images.tensor == 7.0).sum() == padding


def test_a_single_volume_is_padded_too_and_one_that_fits_is_as_it_was():
    volume = torch.rand(1, 4, 3, 6).movedim(1, 3)  # (1, 3, 6, 4), another order in memory
    padded = ImageList3D.from_tensors([volume], (2, 4, 8), pad_value=7.0)
    assert padded.tensor.shape == (1, 1, 4, 8, 8) and padded.image_sizes == [(3, 6, 4)]
    assert torch.equal(padded[0], volume) and (padded.tensor == 7.0).sum() == 256 - 72
    fits = ImageList3D.from_tensors([volume], (3, 2, 4), pad_value=7.0)
    assert torch.equal(fits.tensor, volume[None]) and fits.tensor.is_contiguous()
    assert fits.image_sizes == [(3, 6, 4)]


def test_to_keeps_class_and_sizes():
    images = ImageList3D.from_tensors([torch.ones(1, 2, 2, 2)]).to(torch.float64)
    assert type(images) is ImageList3D and images.tensor.dtype == torch.float64
    assert images.image_sizes == [(2, 2, 2)]


@pytest.mark.parametrize("shapes", [[], [(2, 2, 2)], [(1, 2, 2, 2), (3, 2, 2, 2)]])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="expected at least one of"):
        ImageList3D.from_tensors([torch.zeros(shape) for shape in shapes])
