"""``python -m pmxcfs``."""

import sys

from pmxcfs.cli import main

sys.exit(main())
