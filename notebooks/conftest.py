"""As tests, notebooks train for fewer steps; `make notebooks` runs them in full."""

import os

os.environ["FAST"] = "1"
