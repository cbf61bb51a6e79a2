"""`python -m billing` serves it: metering/gunicorn_start.py."""

import sys

from metering.gunicorn_start import start

if __name__ == "__main__":
    start("billing", sys.argv[1:])
