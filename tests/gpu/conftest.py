"""What the tests on a real device share with those on a pretended one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
