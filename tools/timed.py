"""Run a command and say how long it took: python tools/timed.py NAME COMMAND [ARGUMENT ...]."""

import subprocess
import sys
import time

if __name__ == "__main__":
    name, command = sys.argv[1], sys.argv[2:]
    print(f"{name}: starting", flush=True)
    start = time.monotonic()
    status = subprocess.call(command)
    words = "done" if status == 0 else f"failed with status {status}"
    print(f"{name}: {words} after {time.monotonic() - start:.0f} s", flush=True)
    sys.exit(status)
