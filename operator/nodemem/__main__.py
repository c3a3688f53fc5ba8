"""``python -m nodemem`` is the ``nodemem`` command."""

import sys

from nodemem.cli.main import main

sys.exit(main())
