import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.structures import Boxes, Instances

BOXES = torch.tensor([[9.5, 9.5, 1.5, 19.5, 29.5, 4.5], [-3.0, 2.0, 0.0, 5.0, 50.0, 9.0]])


def test_area_and_centers_are_those_of_three_axes():
    boxes = Boxes3D(BOXES)
    assert boxes.area().tolist() == [10 * 20 * 3, 8 * 48 * 9]
    assert boxes.get_centers().tolist() == [[14.5, 19.5, 3.0], [1.0, 26.0, 4.5]]
    assert boxes.nonempty(3.0).tolist() == [False, True]
    assert boxes.nonempty().tolist() == [True, True]


def test_clip_goes_to_the_outer_edges_of_the_voxels():
    boxes = Boxes3D(BOXES)
    boxes.clip((4, 20, 16))
    assert boxes.tensor.tolist() == [
        [9.5, 9.5, 1.5, 15.5, 19.5, 3.5],
        [-0.5, 2.0, 0.0, 5.0, 19.5, 3.5],
    ]
    with pytest.raises(ValueError, match="expected finite"):
        Boxes3D(torch.full((1, 6), float("nan"))).clip((4, 20, 16))


def test_inside_box_counts_the_outer_edges_in():
    whole = Boxes3D(torch.tensor([[-0.5, -0.5, -0.5, 15.5, 19.5, 3.5]]))
    assert whole.inside_box((4, 20, 16)).item()
    for size in ((3, 20, 16), (4, 19, 16), (4, 20, 15)):
        assert not whole.inside_box(size).item()
        assert whole.inside_box(size, boundary_threshold=1).item()


def test_scale_keeps_the_edge_of_the_volume():
    whole = Boxes3D(torch.tensor([[-0.5, -0.5, -0.5, 15.5, 19.5, 3.5]]))
    whole.scale(0.5, 2.0, 3.0)
    assert whole.tensor.tolist() == [[-0.5, -0.5, -0.5, 7.5, 39.5, 11.5]]


def test_indexing_cat_and_instances_keep_the_class():
    boxes = Boxes3D(BOXES)
    for part in (boxes[0], boxes[:1], boxes[torch.tensor([True, False])], boxes[torch.tensor([0])]):
        assert type(part) is Boxes3D and part.tensor.tolist() == BOXES[:1].tolist()
    assert type(Boxes3D.cat([boxes, boxes])) is Boxes3D
    assert len(Boxes3D.cat([])) == 0 and Boxes3D.cat([]).tensor.shape == (0, 6)
    both = Instances.cat([Instances((4, 20, 16), gt_boxes=boxes)] * 2)[1:3]
    assert type(both.gt_boxes) is Boxes3D and len(both.gt_boxes) == 2
    assert isinstance(boxes.to("cpu"), Boxes) and boxes.clone().tensor is not boxes.tensor


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"found shape \(1, 4\), expected \(N, 6\)"):
        Boxes3D(torch.zeros(1, 4))
