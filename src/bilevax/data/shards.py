"""Rows dealt to several devices, each of which reads its own."""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilevax.core.config import check_count, config
from bilevax.core.errors import ParameterError
from bilevax.core.keys import is_key
from bilevax.core.protocols import Carry, Draw, Total
from bilevax.core.ranks import gathered, same_on_all
from bilevax.core.strata import Piece, Strata
from bilevax.core.trees import PyTree
from bilevax.data.arrays import Arrays
from bilevax.data.fold import fold
from bilevax.data.sampling import CHUNK, renewed
from bilevax.data.stream import Stream

AXIS = "strata"

OWN, ALIKE = PartitionSpec(AXIS), PartitionSpec()
"""What is dealt to the devices by its leading axis, and what is the same on all."""


@config
class Sharded:
    """Rows in strata, each on one device; made by :func:`sharded`.

    Attributes:
        data: the rows, leaves [S, ceil(n / S), ...], dealt by their first axis.
        sizes: how many rows each stratum has, [S].
        known: a checksum of each stratum, [S], by which a run that goes on knows its data.
        rows: n.
        batch_size: b; None: every row.
        strata: S.
        mesh: its devices.
    """

    data: PyTree = dataclasses.field(metadata={"told": False})
    sizes: Array = dataclasses.field(metadata={"told": False})
    known: np.ndarray
    rows: int = dataclasses.field(metadata={"static": True})
    batch_size: int | None = dataclasses.field(metadata={"static": True})
    strata: int = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True, "told": False})

    keys: ClassVar[bool] = False
    all_rows: ClassVar[None] = None

    @property
    def rows_per_batch(self) -> int:
        """Number of rows in a minibatch, b; n where ``batch_size`` is None."""
        return self.batch_size or self.rows

    @property
    def is_full_batch(self) -> bool:
        """True if each minibatch is every row."""
        return self.batch_size is None

    @property
    def blocks(self) -> int | None:
        """1 where each minibatch is every row, None where a draw is no block."""
        return 1 if self.batch_size is None else None

    def example(self) -> Strata:
        """The shapes and dtypes of a batch."""
        numbers = jax.ShapeDtypeStruct((self.strata, self.rows_per_batch // self.strata), jnp.int32)
        out: Strata = jax.eval_shape(self._batch, numbers) if self.batch_size else jax.eval_shape(self._everything)
        return out

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row of ``fn(args, batch)``: sum_s n_s / n fn(args, stratum s)."""
        return self._everything().mean(partial(fn, args))

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The rows of the chunk that minibatch j opens, by their numbers in their strata, [S, CHUNK, b / S]."""
        return () if self.batch_size is None else renewed(plan, partial(self._choose, key, j), j, first)

    def chunk_end(self, j: Array) -> Array:
        """The first minibatch after j that opens a chunk."""
        return (j // CHUNK + 1) * CHUNK

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)`` of minibatch j."""
        return use(Draw(self._everything() if self.batch_size is None else self._batch(plan[:, j % CHUNK]), -1, 1.0))

    fold = fold

    def _choose(self, key: Array, j: Array) -> Array:
        # b / S rows of each stratum, with replacement
        number = self.rows_per_batch // self.strata

        def of(key: Array, s: Array, size: Array) -> Array:
            # of (key, chunk, s) alone: who owns a stratum plays no part
            own = jax.random.fold_in(jax.random.fold_in(key, j // CHUNK), s)
            return jax.random.randint(own, (CHUNK, number), 0, size, jnp.int32)

        draw = jax.vmap(of, (None, 0, 0))
        out: Array = self._on_owners(draw, (ALIKE, OWN, OWN), key, jnp.arange(self.strata, dtype=jnp.int32), self.sizes)
        return out

    def _batch(self, numbers: Array) -> Strata:
        """These rows of each stratum, [S, b / S], weighted n_s S / n against a mean over the batch."""
        # by each owner from its own rows: left to the partitioner, a gather might bring the table together
        take = jax.vmap(lambda rows, at: jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), rows))
        rows = self._on_owners(take, (OWN, OWN), self.data, numbers)
        # sum_s n_s / n (mean over the b / S rows of stratum s)
        return Strata((Piece(rows, self.sizes.astype(float) / self.rows),))

    def _everything(self) -> Strata:
        m = -(-self.rows // self.strata)
        # mean over every row = sum_s m / n (mean over m rows) - sum over short s of 1 / n (the m-th, which pads it)
        whole = Piece(self.data, jnp.full(self.strata, m / self.rows))
        if self.rows % self.strata == 0:
            return Strata((whole,))
        padding = jax.tree.map(lambda a: a[:, m - 1 :], self.data)
        return Strata((whole, Piece(padding, (self.sizes - m).astype(float) / self.rows)))

    def _on_owners(self, fn: Callable[..., PyTree], specs: tuple[PartitionSpec, ...], *args: PyTree) -> PyTree:
        """``fn`` on each device's part of the arguments."""
        return jax.shard_map(fn, mesh=self.mesh, in_specs=specs, out_specs=OWN)(*args)


def sharded(source: Arrays | Stream, mesh: Mesh, strata: int = 8) -> Sharded:
    """The rows of a source dealt to the devices of a mesh, in one process or in several, each with its own part.

    Row i belongs to stratum i mod S; each of the D devices has S / D strata, in the order of the mesh. A minibatch
    takes b / S rows of each stratum, independent and with replacement, and its mean is weighted by n_s S / n:

        sum_s (n_s / n) mean over the b / S rows of stratum s ,

    which is unbiased, and differs from that of b rows of :class:`~bilevax.Arrays` in what it takes of each stratum.
    Which rows are minibatch j of stratum s is a function of (key, j, s) alone, so any number of devices that divides S
    gives the same result, to rounding; one device with the same S is the reference. w, v and lam are the same
    everywhere, and a mean over the mesh is an all-reduce that the compiler puts where a sum crosses devices. Programs
    are those of other sources: every process makes the same calls, with the same arguments.

    A stratum that is shorter than others is padded by a copy of its first row, never drawn, whose weight in ``total``
    is 0. A batch is a :class:`~bilevax.core.strata.Strata`; losses see plain rows, b / S of them at a time. In a loop
    of one's own, ``draw.batch.mean(fn)`` is the weighted mean of ``fn(rows)``.

    Args:
        source: all rows, the same in every process, drawn ``"iid"`` or all at once; rows in memory, or a
            :class:`~bilevax.Stream`, of which a process reads its own strata alone, into memory.
        mesh: of devices, as many in each process, such as ``jax.make_mesh((jax.device_count(),), ("rows",))``.
        strata: S, a multiple of the number of devices that divides the batch size. Default 8.

    Raises:
        ParameterError: S does not fit the batch size, the devices or the rows; the mesh leaves a process out; the
            source is no such source, draws otherwise or brings keys.
        DataError: processes were given other rows or settings than process 0, which is said by their numbers.

    Examples:
        >>> import bilevax as bx
        >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",))
        >>> source = bx.sharded(bx.Arrays(np.arange(21, dtype=np.float32), batch_size=8), mesh)
        >>> round(float(source.total(lambda scale, batch: scale * jnp.mean(batch), jnp.float32(3.0))), 4)
        30.0
    """
    S, n, b = check_count("strata", strata, low=1), _checked(source), source.batch_size
    devices = mesh.devices.ravel()
    _check_fit(S, n, b, devices)
    same_on_all("the source of sharded", {"rows": n, "batch_size": b, "strata": S, **_told(source)})
    # Auto: what a user's loss does to the rows is partitioned without being told how
    own = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    known, parts = np.zeros(S, np.uint32), []
    for device, index in NamedSharding(own, OWN).addressable_devices_indices_map((S,)).items():
        assert index is not None
        part = index[0]
        read = [_stratum(source, s, S) for s in range(*part.indices(S))]
        known[part] = [_checksum(rows) for rows in read]
        parts.append([jax.device_put(np.stack(leaf), device) for leaf in zip(*map(_padded(n, S), read), strict=True)])
    data = [
        jax.make_array_from_single_device_arrays((S, *leaf[0].shape[1:]), NamedSharding(own, OWN), list(leaf))
        for leaf in zip(*parts, strict=True)
    ]
    rows = jax.tree.unflatten(jax.tree.structure(source.example()), data)
    sizes = jnp.asarray([len(range(s, n, S)) for s in range(S)], jnp.int32)
    return Sharded(rows, sizes, gathered(known).sum(axis=0, dtype=np.uint32), n, b, S, own)


def _checked(source: Arrays | Stream) -> int:
    """The number of its rows, n, if it can be dealt."""
    if not isinstance(source, Arrays | Stream):
        raise ParameterError(f"sharded deals the rows of a bx.Arrays or a bx.Stream, got {type(source).__name__}")
    if source.batch_size is not None and source.sampling != "iid":
        raise ParameterError(
            f'sharded draws rows of each stratum independently, and sampling="{source.sampling}" draws others; leave it'
            " out, or give batch_size=None"
        )
    if source.keys or any(is_key(leaf) for leaf in jax.tree.leaves(source.all_rows)):
        raise ParameterError("sharded deals numbers, and these rows have random keys; leave out keys=True")
    return source.rows


def _check_fit(S: int, n: int, b: int | None, devices: np.ndarray) -> None:
    """Refuse what cannot be dealt evenly."""
    if b is not None and b % S:
        raise ParameterError(f"strata={S} must divide batch_size={b}: a minibatch has as many rows of each stratum")
    if n < S:
        raise ParameterError(f"strata={S} must be at most the number of rows, {n}")
    counts = np.bincount([device.process_index for device in devices], minlength=jax.process_count())
    if counts.min() != counts.max():
        raise ParameterError(
            f"each of the {len(counts)} processes must have as many devices in the mesh, and they have"
            f" {', '.join(map(str, counts))}"
        )
    if S % len(devices):
        of = f"{len(devices)} devices" + (f" of {len(counts)} processes" if len(counts) > 1 else "")
        raise ParameterError(f"strata={S} cannot be dealt to {of}: their number must divide it")


def _told(source: Arrays | Stream) -> dict[str, str]:
    """Of which rows these are: every entry of those in memory, what a stream knows its table by."""
    if isinstance(source, Stream):
        return {"data": repr(source.data)}
    leaves = jax.tree.leaves(source.data)
    kinds = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves)
    return {"data": f"{kinds}, crc32={_checksum([np.asarray(x) for x in leaves]):08x}"}


def _stratum(source: Arrays | Stream, s: int, S: int) -> list[np.ndarray]:
    """The rows s, s + S, ..., leaf by leaf."""
    if isinstance(source, Arrays):
        return [np.asarray(x)[s::S] for x in jax.tree.leaves(source.data)]
    numbers = np.arange(s, source.rows, S)
    most = max(1, source.prefetch_bytes // source.data.row_bytes)
    read = [source.data.rows(numbers[i : i + most]) for i in range(0, len(numbers), most)]
    return [np.concatenate(leaf) for leaf in zip(*read, strict=True)]


def _padded(n: int, S: int) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A stratum with as many rows as the longest, ceil(n / S)."""
    m = -(-n // S)
    # a stratum that is one short repeats a row, whose weight total takes away
    return lambda rows: [x if len(x) == m else np.concatenate([x, x[:1]]) for x in rows]


def _checksum(leaves: list[np.ndarray]) -> int:
    return zlib.crc32(b"".join(np.uint32(zlib.crc32(np.ascontiguousarray(x).data)).tobytes() for x in leaves))
