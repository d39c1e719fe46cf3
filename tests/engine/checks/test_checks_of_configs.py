"""Every config of the project has keys and values that the checks accept."""

from lesion_d2.engine.checks.relations import RELATIONS, TRAINING_RELATIONS, check_relations
from lesion_d2.engine.checks.unused import check_unused
from lesion_d2.engine.checks.values import check_values

import pytest
from config_values import CONFIGS, read

# Parts are no configs by themselves.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "parts")


@pytest.mark.parametrize(
    "folder",
    sorted({file.parent for file in FILES}),
    ids=lambda f: f.relative_to(CONFIGS).as_posix(),
)
def test_no_config_is_refused(folder):
    for file in (file for file in FILES if file.parent == folder):
        cfg = read(file)
        check_unused(cfg)
        check_values(cfg)
        check_relations(cfg, RELATIONS)
        check_relations(cfg, TRAINING_RELATIONS)
