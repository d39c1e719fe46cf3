from .datasets import set_dataset_options
from .inputs import check_inputs

__all__ = ["check_inputs", "set_dataset_options"]
