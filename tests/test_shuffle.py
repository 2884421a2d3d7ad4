"""Permutations of which only some entries are computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax.data.permutation import hashed_rows, shuffled


def permutations(number, n):
    """The first of so many permutations, from consecutive epochs of one key: [number, n]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(number))
    return np.asarray(jax.vmap(lambda k: shuffled(k, jnp.arange(n, dtype=jnp.int32), n))(keys))


def surprise(counts):
    """How many standard deviations the chi-square statistic of counts lies above that of equal chances."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 1000])
def test_every_entry_occurs_once(n):
    assert np.array_equal(np.sort(permutations(20, n), axis=1), np.broadcast_to(np.arange(n), (20, n)))


def test_a_part_is_the_part_of_the_whole():
    key = jax.random.key(5)
    whole = shuffled(key, jnp.arange(300, dtype=jnp.int32), 300)
    some = jnp.asarray([[299, 0], [17, 17]], jnp.int32)
    assert np.array_equal(shuffled(key, some, 300), whole[some])


def test_all_orders_of_four_are_equally_likely():
    drawn = permutations(24_000, 4)
    counts = [np.sum(np.all(drawn == order, axis=1)) for order in itertools.permutations(range(4))]
    assert abs(surprise(np.asarray(counts))) < 4


@pytest.mark.parametrize("pair", [(0, 1), (3, 46), (0, 49)])
def test_two_entries_are_any_two_with_equal_chances(pair):
    drawn = permutations(40_000, 50)
    counts = np.bincount(drawn[:, pair[0]] * 50 + drawn[:, pair[1]], minlength=2500).reshape(50, 50)
    assert np.all(np.diag(counts) == 0)
    assert abs(surprise(counts[~np.eye(50, dtype=bool)])) < 4


def test_an_epoch_says_nothing_of_the_next():
    drawn = permutations(40_001, 6)
    counts = np.bincount(drawn[:-1, 0] * 6 + drawn[1:, 0], minlength=36)
    assert abs(surprise(counts)) < 4


def test_hashed_rows_are_as_good_as_drawn():
    """Uniform, without correlation from place to place or from key to key."""
    n, keys = 37, jax.random.split(jax.random.key(0), 400)
    places = jnp.arange(96, dtype=jnp.uint32)
    found = np.asarray(jax.vmap(lambda words: hashed_rows(words, places, n))(jax.random.key_data(keys)))
    assert found.min() == 0
    assert found.max() == n - 1
    counts = np.bincount(found.ravel(), minlength=n)
    expected = found.size / n
    assert np.sum((counts - expected) ** 2 / expected) < 80  # chi^2 of 36 degrees: beyond 80 once in 30,000
    centred = found - (n - 1) / 2
    scale = np.mean(centred**2)
    for shift in (1, 16, 17):
        assert abs(np.mean(centred[:, shift:] * centred[:, :-shift])) < 5 * scale / np.sqrt(found.size)
    assert abs(np.mean(centred[1:] * centred[:-1])) < 5 * scale / np.sqrt(found.size)
