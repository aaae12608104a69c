"""sphere_mini: "Image Generation with a Sphere Encoder" (arXiv 2602.15030), small, clear and fast.

Names are loaded when they are first used: importing the package alone does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
MODULES = {
    "SphereConfig": "config",
    "SphereEncoder": "model",
    "UserError": "errors",
    "crossover": "sampling",
    "generate": "sampling",
    "import_release": "extras.release",
    "interpolate": "sampling",
    "manipulate": "sampling",
    "reconstruct": "sampling",
    "spherify": "sphere",
}
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    """One of the names above, from the module that defines it."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
