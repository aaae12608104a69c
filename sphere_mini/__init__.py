"""sphere_mini: "Image Generation with a Sphere Encoder" (arXiv 2602.15030), small, clear and fast."""

from .config import SphereConfig
from .errors import UserError
from .model import SphereEncoder
from .release import import_release
from .sampling import crossover, generate, interpolate, manipulate, reconstruct
from .sphere import spherify

__all__ = [
    "SphereConfig",
    "SphereEncoder",
    "UserError",
    "crossover",
    "generate",
    "import_release",
    "interpolate",
]
__all__ += ["manipulate", "reconstruct", "spherify"]
