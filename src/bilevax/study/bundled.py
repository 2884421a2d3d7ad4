"""The data sets that come with scikit-learn, as tables."""

import numpy as np
from sklearn import datasets

from bilevax.core.errors import ParameterError
from bilevax.tables.table import Column, Table, object_array, suggestion

_TARGETS = {"breast_cancer": "diagnosis", "digits": "digit", "iris": "species", "wine": "cultivar"}

NAMES = tuple(_TARGETS)
"""The names of the data sets."""


def bundled_target(name: str) -> str:
    """The column to be predicted: ``diagnosis``, ``digit``, ``species`` or ``cultivar``."""
    return _TARGETS[name]


def load_bundled(name: str) -> Table:
    """A bundled data set for classification: ``breast_cancer``, ``digits``, ``iris`` or ``wine``.

    The last column is the target (:func:`bundled_target`); its labels are integers for ``digits``, else text.

    Raises:
        ParameterError: there is no data set of that name.
    """
    if name not in _TARGETS:
        raise ParameterError(f"no bundled data set '{name}'; {suggestion(name, NAMES)}")
    bunch = getattr(datasets, f"load_{name}")()
    columns = []
    for feature, values in zip(bunch.feature_names, bunch.data.T, strict=True):
        whole = bool(np.all(values == np.rint(values)))
        columns.append(Column(str(feature), "integer" if whole else "number", values.astype(float)))
    # The digits' names are numbers; the others' are words.
    if all(isinstance(label, str) for label in bunch.target_names):
        labels = [str(bunch.target_names[code]) for code in bunch.target]
        columns.append(Column(_TARGETS[name], "text", object_array(labels)))
    else:
        columns.append(Column(_TARGETS[name], "integer", bunch.target.astype(float)))
    return Table(name, tuple(columns))
