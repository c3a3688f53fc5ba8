"""``python -m nodemem.cli.kubectl`` is ``kubectl-nodemem``."""

import sys

from nodemem.cli.kubectl.main import main

sys.exit(main())
