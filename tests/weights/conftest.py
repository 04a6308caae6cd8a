import pytest

from holdall.weights import quality


@pytest.fixture(scope="session")
def corner():
    """A corner of SmolLM2 that still runs as a transformers model."""
    return quality.real()
