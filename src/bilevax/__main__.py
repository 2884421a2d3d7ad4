"""``python -m bilevax`` is the command ``bilevax``."""

from bilevax.cli import main

if __name__ == "__main__":
    main()
