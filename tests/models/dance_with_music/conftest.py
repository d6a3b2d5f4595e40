"""Tiny shards of drawn dancers, made once."""

import pytest

from tests.tiny_dance import TinyDance, make_tiny_dance


@pytest.fixture(scope="session")
def dance(tmp_path_factory) -> TinyDance:
    return make_tiny_dance(tmp_path_factory.mktemp("dance"), 8)
