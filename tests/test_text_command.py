"""``bilevax tune`` on texts and on svmlight files: the words are learned, and the files alone predict the same."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from bilevax import DataError, ParameterError
from bilevax.cli.source import open_table
from bilevax.sklearn import TableEncoder
from bilevax.study import TuneSettings, read_model, tune_table, write_run
from bilevax.study.settings import settings_from
from bilevax.tables import read_table
from bilevax.tables.reading import Reading

WORDS = {"yes": ("great", "lovely"), "no": ("poor", "torn")}


def reviews(path: Path, rows: int = 120) -> Path:
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "review", "liked"])
        for i in range(rows):
            label = draw.choice(["yes", "no"])
            words = [*draw.choices(["the", "dress", "colour", "fabric", "fit"], k=5), draw.choice(WORDS[label])]
            writer.writerow([draw.randrange(18, 70), " ".join(words) if i % 20 else "", label])
    return path


def test_words_are_learned_and_the_files_of_a_run_predict_the_same(tmp_path: Path) -> None:
    settings = TuneSettings(model="linear", words=("review",), time=1e-9)
    table = read_table(reviews(tmp_path / "t.csv"), **settings.reading._asdict())
    study = tune_table(table, "liked", settings=settings)
    write_run(study, tmp_path / "run")
    model = read_model(tmp_path / "run")
    probability = model.predict_proba(table)
    np.testing.assert_allclose(probability, study.model.predict_proba(table), rtol=1e-12)
    labels = np.array([label == "yes" for label in table.column("liked").values])
    there = np.array([cell is not None for cell in table.column("review").values])
    assert np.mean((probability[there, 1] > 0.5) == labels[there]) > 0.95
    exported = json.loads((tmp_path / "run" / "coefficients.json").read_text())
    assert exported["formula"][-1].startswith("text: x = ")
    terms = {term["value"]: term for term in exported["terms"] if "grams" in term}
    assert terms["great"]["weight"][0] > 0.0 > terms["poor"]["weight"][0]


def test_only_a_linear_model_reads_texts(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="what a linear model learns from"):
        settings_from({"words": ["review"]})
    table = read_table(reviews(tmp_path / "t.csv"))
    with pytest.raises(DataError, match="did you mean 'review'"):
        tune_table(table, "liked", settings=TuneSettings(model="linear", words=("reviews",)))


def test_the_target_of_a_svmlight_file_is_known(tmp_path: Path) -> None:
    path = tmp_path / "t.svm"
    path.write_text("1 1:0.5 7:2\n0 2:1\n")
    table, target = open_table(str(path), Reading())
    assert (target, table.names[-1]) == ("target", "target")


def test_a_svmlight_file_stays_sparse_from_end_to_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(200, 3000, 0.01, "csr", rng=rng, data_rvs=rng.standard_normal)
    labels = np.asarray(X[:, :1500].sum(axis=1)).ravel() > 0.0
    dump_svmlight_file(X, labels, str(tmp_path / "t.svm"), zero_based=False, comment="by hand")
    settings = TuneSettings(model="linear", cells=("cells",), time=1e-9)
    table, target = open_table(str(tmp_path / "t.svm"), settings.reading)
    assert (table.names, target) == (("cells", "target"), "target")
    study = tune_table(table, "target", settings=settings)
    write_run(study, tmp_path / "run")
    model = read_model(tmp_path / "run")
    # the weights are those of the file's columns that occur in two rows that are learned from
    whole, y = load_svmlight_file(str(tmp_path / "t.svm"), n_features=3000)
    learned = study.prepared.split.train
    names = np.array([int(term.value) for term in model.terms])
    assert list(names) == list(1 + np.flatnonzero((whole[learned] != 0).sum(axis=0) >= 2))
    score = whole[:, names - 1] @ model.coef[0] + model.intercept[0]
    np.testing.assert_allclose(model.predict_proba(table)[:, 1], 1.0 / (1.0 + np.exp(-score)), rtol=1e-9)
    assert np.mean((score > 0.0) == (y == 1.0)) > 0.8
    exported = json.loads((tmp_path / "run" / "coefficients.json").read_text())
    assert exported["formula"][-1].startswith("text of cells: x is")


@pytest.mark.parametrize(("cell", "sentence"), [("a:3", "'a:3' is no cell"), ("3:nan", "a cell is missing")])
def test_what_is_no_cell_is_named(cell: str, sentence: str) -> None:
    encoder = TableEncoder(cells=["x"], min_texts=1)
    rows = pd.DataFrame({"x": ["1:0.5 2:1", "2:-3e1 1:2", None]})
    np.testing.assert_array_equal(encoder.fit(rows).transform(rows).toarray(), [[0.5, 1.0], [2.0, -30.0], [0.0, 0.0]])
    with pytest.raises(DataError, match=sentence):
        encoder.fit(pd.DataFrame({"x": [cell, "1:1"]})).transform(pd.DataFrame({"x": [cell, "1:1"]}))
