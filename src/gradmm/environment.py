"""Where a run was made: versions and machine, for `environment.json` and `gradmm doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

_PACKAGES = ("gradmm", "torch", "transformers", "tokenizers", "datasets", "numpy")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor and threads."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
