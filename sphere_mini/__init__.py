"""*Image Generation with a Sphere Encoder* (arXiv 2602.15030), small, clear and fast."""

from .config import SphereConfig
from .errors import UserError
from .extras.release import import_release
from .model import SphereEncoder
from .sampling import crossover, generate, interpolate, manipulate, reconstruct
from .sphere import spherify

__version__ = "0.1.0"
__all__ = ["SphereConfig", "SphereEncoder", "UserError", "crossover", "generate", "import_release"]
__all__ += ["interpolate", "manipulate", "reconstruct", "spherify"]
