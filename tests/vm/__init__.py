"""Real kernels of other ages under QEMU, with nodemem's own code running inside them. ``python -m vm --help``."""
