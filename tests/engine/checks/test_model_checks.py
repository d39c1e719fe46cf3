"""Keys of one-stage models that other models, or other keys, leave without a meaning."""

from lesion_d2.engine.checks.model import check_model
from lesion_d2.engine.input_errors import InputError

import pytest
from made_up_patches import tiny_config

ATSS = "MODEL.RETINANET.ATSS_CANDIDATES"
NEGATIVES = "MODEL.RETINA_UNET.SHEM_NEGATIVES"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("LesionRCNN3D", (ATSS, 4), f"'LesionRCNN3D', expected a LesionRetinaNet.* for {ATSS} 4"),
        ("RetinaNet", (ATSS, 9), f"META_ARCHITECTURE: found 'RetinaNet', expected.* for {ATSS} 9"),
        ("LesionRetinaNet", (NEGATIVES, 2), f"expected a RetinaUNet, .* for {NEGATIVES} 2"),
        ("DetUNet3D", (NEGATIVES, 2), f"found 'DetUNet3D', expected a RetinaUNet.*{NEGATIVES} 2"),
        (
            "RetinaUNet3D",
            (NEGATIVES, 2, "MODEL.RETINA_UNET.SHEM_POOL", 0),
            r"SHEM_NEGATIVES: found 2, expected 0, or a pool .*SHEM_POOL is 0\)",
        ),
        (
            "RetinaNet3D",
            ("MODEL.RETINANET.ATSS_CENTER_INSIDE", True),
            r"ATSS_CENTER_INSIDE: found True, expected False.*ATSS_CANDIDATES is 0\)",
        ),
    ],
)
def test_keys_without_a_meaning_stop_a_run(model, options, message):
    with pytest.raises(InputError, match=message) as error:
        check_model(tiny_config(model, *options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["RetinaUNet3D", "RetinaNet3D"])
def test_what_the_model_goes_by_is_taken(model):
    options = (ATSS, 4, "MODEL.RETINANET.ATSS_CENTER_INSIDE", True, NEGATIVES, 2)
    built = check_model(tiny_config(model, *options))
    assert (built.atss.num_candidates, built.atss.center_inside) == (4, True)
    assert (built.shem_pool, built.shem_negatives) == (20, 2)
