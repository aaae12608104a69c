"""sphere_mini: "Image Generation with a Sphere Encoder" (arXiv 2602.15030), small, clear and fast."""

from .errors import UserError
from .model import SphereConfig, SphereEncoder
from .release import import_release
from .sampling import generate, reconstruct
from .sphere import spherify

__all__ = ["SphereConfig", "SphereEncoder", "UserError", "generate", "import_release", "reconstruct", "spherify"]
