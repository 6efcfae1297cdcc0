"""Plays all stories, one after the other: `stories.py [WORD_OF_A_TITLE…]`."""

import asyncio
import logging
import sys

import accounts  # noqa: F401
import history  # noqa: F401
import media  # noqa: F401
import messages  # noqa: F401
import rooms  # noqa: F401
from stage import perform

logging.disable(logging.CRITICAL)
sys.exit(asyncio.run(perform()))
