import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation.strata import Truth, make_strata

import numpy as np
from detectron2.structures import BoxMode


def test_truth_of_dicts():
    lesion = {"bbox": [1, 2, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "coarse_type": 3}
    truth = Truth.from_dicts(
        [
            {"image_id": "b", "patient": 7, "spacing": (1.0, 1.0, 5.0), "annotations": [lesion]},
            {"image_id": "a", "annotations": []},
            {"image_id": "c", "patient": 7, "annotations": [lesion, lesion]},
            {"image_id": 7},
        ]
    )

    assert truth.image_ids == ["b", "a", "c", 7]
    assert truth.patients.tolist() == [0, 1, 0, 2]  # image 7 is not patient 7
    assert truth.num_patients == 3
    assert truth.boxes[0].tolist() == [[1, 2, 11, 22]]
    assert [len(boxes) for boxes in truth.boxes] == [1, 0, 2, 0]
    assert truth.lesion_images.tolist() == [0, 2, 2]
    assert truth.spacing_z[0] == 5 and np.isnan(truth.spacing_z[1:]).all()
    assert truth.types.tolist() == [3, 3, 3] and np.isnan(truth.diameters).all()

    by_key = {stratum.key: stratum for stratum in make_strata(truth)}
    assert by_key["mediastinum"].lesions.all() and not by_key["liver"].lesions.any()
    assert by_key["over_2.5mm"].lesions.tolist() == [True, False, False]
    assert by_key["over_2.5mm"].images.tolist() == [True, False, False, False]
    assert not by_key["up_to_2.5mm"].images.any()
    assert by_key["bone"].images.all()
