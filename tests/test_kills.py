"""kill -9 at random times, with the persistent compile cache: runs end with the bits of one that was left alone.

The environment variable ``BILEVAX_KILLS`` says how often each is killed.
"""

import os

import pytest
from kill_rig import ALGORITHMS, kill

KILLS = int(os.environ.get("BILEVAX_KILLS", "5"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*ALGORITHMS, "tune"])
def test_killed_at_random_times_it_ends_with_the_same_bits(tmp_path, name):
    assert kill(tmp_path, name, KILLS) >= 1
