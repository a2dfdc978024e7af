"""The command line: ``owm`` and ``owm-node``. Each command lives in its own module, imported when it runs."""

from owm.cli._app import main, node_main

__all__ = ["main", "node_main"]
