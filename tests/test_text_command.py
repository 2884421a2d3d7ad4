"""``bilevax tune`` on texts and on svmlight files: the words are learned, and the files alone predict the same."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from bilevax import DataError, ParameterError
from bilevax.cli.source import open_table
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
