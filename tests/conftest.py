"""What all tests share."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _collections_look_at_what_is_new():
    """Objects of torch and its like, half a million, outlive every module: each measure of memory begins with a
    collection, and walked through all of them for a third of a second."""
    gc.collect()
    gc.freeze()
    yield
