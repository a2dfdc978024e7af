"""What the project claims about speed, as programs: ``python -m benchmarks.<name> [--quick] [--json]``."""
