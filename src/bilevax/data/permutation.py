"""A random permutation of which only some entries are computed."""

import jax
import jax.numpy as jnp
from jax import Array

ROUNDS = 32
"""After r rounds an index has met no swap with probability 2^-r."""


def shuffled(key: Array, i: Array, n: int) -> Array:
    """Entries i of the permutation of 0, ..., n - 1 that ``key`` stands for; different keys, different permutations.

    Each of ROUNDS rounds pairs x with (c - x) mod n, c random, and swaps a random half of the pairs: whether a pair is
    swapped is a hash of its larger member, so both members know. Any part of the permutation costs what it is long,
    where sorting random numbers costs all n.

    Source: Hoang, Morris, Rogaway (2012), "An enciphering scheme based on a card shuffle", arXiv:1208.1176.

    Args:
        key: of the permutation.
        i: int32 of any shape, in [0, n).
        n: number of entries.
    """
    return permuted(cipher_words(key), i, n)


def cipher_words(key: Array) -> Array:
    """The words of the permutation that ``key`` stands for, [2, ROUNDS] uint32."""
    return jax.random.bits(key, (2, ROUNDS), jnp.uint32)  # one call: each more takes long to compile


def permuted(words: Array, i: Array, n: int, nth: Array | None = None) -> Array:
    """Entries i of the permutation of 0, ..., n - 1 with these words; see :func:`shuffled`.

    Of several permutations, words [E, 2, ROUNDS], ``nth`` says of which each entry is, int32 to broadcast against i.
    """
    # c = centre mod n, biased by at most n / 2^32; [ROUNDS], of several [ROUNDS, E]
    centres, salts = jnp.moveaxis(words, (-2, -1), (0, 1))
    rounds = (centres % n).astype(jnp.int32), salts

    def swap(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        # x and (c - x) mod n are partners; the larger of the two is hashed, so that both swap or neither
        centre, salt = pair if nth is None else (pick(word, nth) for word in pair)
        partner = jnp.where(x <= centre, centre - x, centre - x + n)
        swapped = _hash(jnp.maximum(x, partner).astype(jnp.uint32) ^ salt) % 2 == 1
        return jnp.where(swapped, partner, x), None

    return jax.lax.scan(swap, i, rounds)[0]


def permuted_within(words: Array, i: Array, sizes: Array, salt: Array) -> Array:
    """Entries i of permutations of 0, ..., size - 1, one of its own for each salt; sizes and salts int32, like i.

    As :func:`permuted`, by the words [2, ROUNDS] with the salt hashed into them.
    """
    own = _hash(salt.astype(jnp.uint32))

    def swap(x: Array, pair: Array) -> tuple[Array, None]:
        centre = (_hash(pair[0] ^ own) % sizes.astype(jnp.uint32)).astype(jnp.int32)
        partner = jnp.where(x <= centre, centre - x, centre - x + sizes)
        # hashed with the set's own salt: sets of one size are permuted apart
        swapped = _hash(_hash(jnp.maximum(x, partner).astype(jnp.uint32) ^ pair[1]) ^ own) % 2 == 1
        return jnp.where(swapped, partner, x), None

    return jax.lax.scan(swap, i, words.T)[0]


def pick(each: Array, nth: Array) -> Array:
    """``each[nth]`` of a vector; of at most two by a select, which is three times faster."""
    return each[nth] if len(each) > 2 else jnp.where(nth == 0, each[0], each[-1])


def hashed_rows(words: Array, places: Array, n: int) -> Array:
    """Numbers in [0, n), int32, by a hash of places, uint32, and the words of a key: as good as drawn, if few."""
    return (_hash(_hash(places ^ words[0]) ^ words[-1]) % n).astype(jnp.int32)


def _hash(x: Array) -> Array:
    """A bijection of 32-bit words in which every bit of the result depends on every bit of x."""
    # multiply and xorshift, constants of Wellons' search for the least bias ("lowbias32")
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
