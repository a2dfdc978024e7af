"""Installs the browser that the tests of the landing page start; ``python -m tests.page._install`` does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.page._chromium import chromium_missing


def main() -> int:
    """Install it where that can be done; where not, say why, which is a failure in CI only."""
    if not chromium_missing():
        return 0
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        print("Chromium is missing, so the page is not tested: install it with `sudo apt-get install chromium`")
        return 1 if os.environ.get("CI") else 0
    print("installing Chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
