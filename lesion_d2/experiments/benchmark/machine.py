"""Description of the machine of a measurement."""

import datetime
import os
import platform

import torch


def machine_line() -> str:
    """Processor, cores, GPU, versions and date."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {gpu}; "
        f"torch {torch.__version__}, Python {platform.python_version()}; {datetime.date.today()}"
    )
