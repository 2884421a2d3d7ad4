"""What is read back is whole, or it is refused: every byte, every length, and what somebody made to agree."""

import os
import re
import shutil

import pytest
from damage import damages

from bilevax.core import files, manifest
from bilevax.core.errors import CorruptError, StorageError, TooNewError

CONTENTS = {"a.npy": bytes(range(200)), "b.npy": b"", "c.json": b"{}"}


def made(path):
    manifest.write_directory(path, "checkpoint", 2, CONTENTS, {"steps": 3})
    return path


def read(path):
    return manifest.read(path, "checkpoint", 2)


def forge(path, kind="checkpoint", version=2, **changes):
    """A manifest whose checksum agrees with whatever it says."""
    listed = {name: manifest.fingerprint(content) for name, content in CONTENTS.items()} | changes
    (path / manifest.NAME).write_bytes(manifest.encode(kind, version, listed, {"steps": 3}))


@pytest.mark.parametrize("name", [manifest.NAME, *CONTENTS])
def test_every_change_of_a_file_is_refused(tmp_path, name):
    path = made(tmp_path / "step")
    assert read(path).files == CONTENTS
    content, number = (path / name).read_bytes(), 0
    for what, damaged in damages(content):
        if damaged != content:
            (path / name).write_bytes(damaged)
            with pytest.raises(CorruptError, match=name):
                print(name, what, read(path))
            number += 1
    assert number >= len(content)
    (path / name).unlink()
    with pytest.raises(CorruptError, match=rf"{name} is missing"):
        read(path)


def test_a_file_that_is_not_listed_is_not_read(tmp_path):
    path = made(tmp_path / "step")
    (path / "d.npy").write_bytes(b"x")
    assert read(path).files == CONTENTS


def test_another_kind_or_a_newer_format_is_named(tmp_path):
    path = made(tmp_path / "step")
    with pytest.raises(TooNewError, match=r"format 2, written by a later bilevax; this one reads formats up to 1"):
        manifest.read(path, "checkpoint", 1)
    with pytest.raises(CorruptError, match="holds a checkpoint, not a run"):
        manifest.read(path, "run", 2)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/hostname", "sub/x", "..", ".", "", ".hidden", "a\0b", "a\n", "-x", "n" * 300]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    path = made(tmp_path / "a" / "b" / "step")
    (tmp_path / "a" / "x").write_bytes(b"outside")
    forge(path, **{name: manifest.fingerprint(b"outside")})
    with pytest.raises(CorruptError, match=r"manifest\.json names|is damaged"):
        read(path)


@pytest.mark.parametrize("name", [manifest.NAME, "a.npy"])
def test_what_is_no_plain_file_is_refused(tmp_path, name):
    path = made(tmp_path / "step")
    shutil.move(path / name, tmp_path / "moved")
    os.symlink(tmp_path / "moved", path / name)  # whose bytes are right
    with pytest.raises(CorruptError, match=name):
        read(path)
    for make in (os.mkdir, os.mkfifo):  # a pipe would wait for ever
        files.remove(path / name)
        make(path / name)
        with pytest.raises(CorruptError, match=name):
            read(path)
    assert (tmp_path / "moved").exists()


FORGED = {
    "no size": {"a.npy": {}},
    "no entry": {"a.npy": 3},
    "a size in words": {"a.npy": {"bytes": "200", "sha256": "0" * 64}},
    "a size that is none": {"a.npy": {"bytes": -1, "sha256": "0" * 64}},
    "10^12 bytes": {"a.npy": {"bytes": 10**12, "sha256": "0" * 64}},
    "no checksum": {"a.npy": {"bytes": 200}},
    "more": {"a.npy": manifest.fingerprint(CONTENTS["a.npy"]) | {"more": 1}},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_manifest_that_agrees_with_itself_alone_is_refused(tmp_path, changes):
    path = made(tmp_path / "step")
    forge(path, **changes)
    with pytest.raises(CorruptError):
        read(path)


@pytest.mark.parametrize("version", ["3", 1.5, None, True, [2]])
def test_a_format_that_is_no_number_is_refused(tmp_path, version):
    path = made(tmp_path / "step")
    forge(path, version=version)
    with pytest.raises(CorruptError):
        read(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, '{"sha256": 1e999}', "9" * 10_000, "\ud800"])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    path = made(tmp_path / "step")
    (path / manifest.NAME).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CorruptError, match=re.escape(f"{path / manifest.NAME} is damaged")):
        read(path)


def test_a_manifest_beyond_all_size_is_not_read_into_memory(tmp_path):
    path = made(tmp_path / "step")
    os.truncate(path / manifest.NAME, 1 << 40)  # holes, no bytes
    with pytest.raises(CorruptError, match=r"damaged: it has 1,099,511,627,776 bytes"):
        read(path)


class Meanwhile:
    """Stands in for ``os``: something happens when ``a.npy`` is opened for the first time."""

    def __init__(self, happens):
        self._happens = happens

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, name, *args, **options):
        if name == "a.npy" and self._happens:
            happens, self._happens = self._happens, None
            happens()
        return os.open(name, *args, **options)


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_that_is_replaced_meanwhile_is_read_again(tmp_path, monkeypatch, again):
    path = made(tmp_path / "step")

    def replace():
        path.rename(tmp_path / "old")
        (tmp_path / "old" / "a.npy").unlink()
        if again:
            made(path)

    monkeypatch.setattr(manifest, "os", Meanwhile(replace))
    if again:
        assert read(path).files == CONTENTS
    else:  # and of one that is gone no file is called damaged
        with pytest.raises(CorruptError, match=f"there is no directory {path}"):
            read(path)


def test_what_the_system_refuses_is_no_damage(tmp_path, monkeypatch):
    """Too many open files, say: the checkpoint is whole, and must not be taken for a damaged one."""
    path = made(tmp_path / "step")

    def refuse():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(manifest, "os", Meanwhile(refuse))
    with pytest.raises(StorageError, match=r"cannot read .*a\.npy: Too many open files"):
        read(path)
