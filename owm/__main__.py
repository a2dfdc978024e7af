"""``python -m owm`` is ``owm``."""

from owm.cli import main

if __name__ == "__main__":
    main()
