"""What the claim tests share: a claim must hold, and must be seen to fail when it is broken."""

from contextlib import contextmanager

import pytest


@contextmanager
def rejects(broken: str | None):
    """Let assertions through if nothing is broken; else demand that one of them fails.

    ``broken`` names the ingredient that the test has spoilt (a step, a sign, a factor), so that a
    claim test which passes on anything shows itself.
    """
    if broken is None:
        yield
        return
    with pytest.raises(AssertionError):
        yield
