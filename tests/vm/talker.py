"""A service of the guest with systemd: says a number ten times a second on its standard output, counting up."""

import sys
import time

for number in range(1_000_000):
    sys.stdout.write(f"number {number}\n")
    sys.stdout.flush()
    time.sleep(0.1)
