"""``python -m eyewall`` is the command ``eyewall``."""

from __future__ import annotations

import sys

from eyewall.cli import main

sys.exit(main())
