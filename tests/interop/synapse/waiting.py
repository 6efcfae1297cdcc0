"""Waiting for what must come, and for what must be refused. Nothing here waits without a bound."""

import asyncio
import time

PATIENCE = 20.0


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, request, status, body):
        super().__init__(f"{request}: {status} {body}")
        self.status = status
        self.body = body
        self.errcode = body.get("errcode") if isinstance(body, dict) else None


class InVain(AssertionError):
    """Something was waited for and did not come."""


async def until(what, look, patience=PATIENCE, pause=0.02):
    """Looks until something true is found. `what` says what that would be; it may be a function."""
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise InVain(f"waited {patience:.0f} s in vain: {what() if callable(what) else what}")
        await asyncio.sleep(pause)


async def refused(request, *expected):
    """Checks that a request is refused, with one of these statuses or error codes."""
    try:
        answer = await request
    except Refused as refusal:
        assert not expected or {refusal.status, refusal.errcode} & set(expected), f"not {expected}, but {refusal}"
        return refusal
    raise AssertionError(f"was not refused: {answer}")
