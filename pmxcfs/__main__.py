"""Entry point of ``python -m pmxcfs``."""

import sys

from pmxcfs.cli.main import main

sys.exit(main())
