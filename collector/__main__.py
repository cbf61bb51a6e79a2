"""`python -m collector` serves it: metering/gunicorn_start.py."""

import sys

from metering.gunicorn_start import start

if __name__ == "__main__":
    start("collector", sys.argv[1:])
