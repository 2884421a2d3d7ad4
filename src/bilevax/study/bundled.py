"""Data sets that come with scikit-learn, or with this package, as tables."""

import io
from importlib.resources import files

import numpy as np
from sklearn import datasets

from bilevax.core.errors import ParameterError
from bilevax.tables.table import Column, Table, number_column, object_array, suggestion

_TARGETS = {
    "airfoil": "pressure",
    "breast_cancer": "diagnosis",
    "diabetes": "progression",
    "digits": "digit",
    "iris": "species",
    "wine": "cultivar",
}

NAMES = tuple(_TARGETS)
"""The names of the data sets."""


def bundled_target(name: str) -> str:
    """The column to be predicted, the last one."""
    return _TARGETS[name]


def load_bundled(name: str) -> Table:
    """A bundled data set: ``airfoil``, ``breast_cancer``, ``diabetes``, ``digits``, ``iris`` or ``wine``.

    The last column is the target (:func:`bundled_target`): numbers for ``airfoil`` and ``diabetes``, integers for
    ``digits``, else text. ``airfoil`` is the self-noise of airfoil blades in a wind tunnel, 1,503 measurements (Brooks,
    Pope, Marcolini 1989, NASA RP-1218; UCI Machine Learning Repository, CC BY 4.0): frequency in Hz, angle of attack in
    degrees, chord length and displacement thickness in m, velocity in m/s, sound pressure level in dB.

    Raises:
        ParameterError: there is no data set of that name.

    Examples:
        >>> from bilevax.study import load_bundled
        >>> table = load_bundled("iris")
        >>> len(table.columns), table.name
        (5, 'iris')
    """
    if name not in _TARGETS:
        raise ParameterError(f"no bundled data set '{name}'; {suggestion(name, NAMES)}")
    if name == "airfoil":
        return _airfoil()
    bunch = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    columns = [number_column(str(name), x) for name, x in zip(bunch.feature_names, bunch.data.T, strict=True)]
    # The digits' names are numbers; the others' are words.
    if all(isinstance(label, str) for label in bunch.get("target_names", [0])):
        labels = [str(bunch.target_names[code]) for code in bunch.target]
        columns.append(Column(_TARGETS[name], "text", object_array(labels)))
    else:
        columns.append(number_column(_TARGETS[name], bunch.target.astype(float)))
    return Table(name, tuple(columns))


def _airfoil() -> Table:
    content = files("bilevax.study").joinpath("airfoil.csv").read_text(encoding="ascii")
    names, _, rows = content.partition("\n")
    numbers = np.loadtxt(io.StringIO(rows), delimiter=",")
    return Table("airfoil", tuple(map(number_column, names.split(","), numbers.T)))
