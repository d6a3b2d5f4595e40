"""One pair of processes per test file, and shards of the toy family."""

import pytest

from tests.pair import Pair
from tests.toy import write_toy_shards


@pytest.fixture(scope="module")
def pair():
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_toy_shards(directory)
    return str(directory)
