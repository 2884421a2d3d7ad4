"""Texts as terms: scikit-learn's weights, hashed or not, in the encoder and in a tuned model."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from bilevax import DataError
from bilevax.sklearn import TableEncoder, TunedLogisticRegression
from bilevax.tables import table_from_frame
from bilevax.tables.terms import Term, design_from_terms, terms_from_plain

TEXTS = ["The cat, the CAT sat!", "a dog sat; the dog's fur", "Über cats and dogs", "", "cat sat on the mat", "no dog"]
GRAMS = {
    "words": {},
    "pairs": {"ngram_range": (2, 2)},
    "characters": {"ngram_range": (3, 5), "analyzer": "char_wb"},
}


def frame(times: int = 1) -> pd.DataFrame:
    texts = np.array([*TEXTS, None], object)
    return pd.DataFrame({"age": np.arange(7.0 * times) % 5, "review": np.tile(texts, times)})


@pytest.mark.parametrize("grams", GRAMS)
def test_terms_of_texts_are_scikit_learns(grams: str) -> None:
    encoder = TableEncoder(**{grams: ["review"]}).fit(frame())
    design = encoder.transform(frame())
    own = [j for j, term in enumerate(encoder.terms_) if term.grams == grams]
    reference = TfidfVectorizer(sublinear_tf=True, min_df=2, **GRAMS[grams]).fit([*TEXTS, ""])
    assert [encoder.terms_[j].value for j in own] == list(reference.get_feature_names_out())
    assert sp.issparse(design)
    np.testing.assert_allclose(design.toarray()[:, own], reference.transform([*TEXTS, ""]).toarray(), atol=1e-12)
    ages = frame()["age"].to_numpy()
    np.testing.assert_allclose(design.toarray()[:, 0], (ages - ages.mean()) / ages.std())


def test_a_term_of_a_text_is_written_and_read() -> None:
    encoder = TableEncoder(words=["review"], buckets=3).fit(frame())
    again = terms_from_plain([term.to_plain() for term in encoder.terms_])
    assert again == encoder.terms_
    a, b = encoder.transform(frame()), design_from_terms(again, table_from_frame(frame(), name="t"))
    assert (a != b).nnz == 0
    assert {term.value for term in encoder.terms_ if term.grams == "words"} <= {"#0", "#1", "#2"}
    assert encoder.get_feature_names_out()[-1].startswith("review has '#")


def test_a_model_of_texts_and_numbers_has_a_level_for_each_kind() -> None:
    X = frame(20)
    y = X["review"].fillna("").str.contains("cat").to_numpy().astype(int)
    model = TunedLogisticRegression(
        encoder=TableEncoder(words=["review"], pairs=["review"], characters=["review"]), random_state=0
    )
    model.fit(X, y)
    assert model.score(X, y) == 1.0
    blocks = model.encoder_.blocks_
    assert blocks.max() == 3
    assert len(np.unique(blocks)) == 4
    assert model.penalties_.shape == (len(blocks),)


@pytest.mark.parametrize("per", [[0, 1], np.array([0, 1]), "column"])
def test_groups_of_columns_are_told_by_numbers_or_by_columns_where_texts_are_read(per: object) -> None:
    X = pd.DataFrame({"age": np.arange(80.0) % 7, "review": ["a good cat", "a bad dog"] * 40})
    model = TunedLogisticRegression(encoder=TableEncoder(words=["review"]), penalty_per=per, steps=3, random_state=0)
    model.fit(X, [1, 0] * 40)
    assert model.penalties_.shape == (5,)
    assert len(set(model.penalties_[1:])) == 1
    assert model.penalties_[0] != model.penalties_[1]


def test_words_that_are_not_read_are_said() -> None:
    with pytest.raises(DataError, match="'review' is left out: none of its words of two letters or more is in 2 trai"):
        TableEncoder(words=["review"]).fit(pd.DataFrame({"review": ["a b", "b", "c", ""] * 10}))


def test_a_column_of_texts_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="no column 'reviews'; did you mean 'review'"):
        TableEncoder(words=["reviews"]).fit(frame())


def test_terms_of_texts_are_told_from_others() -> None:
    with pytest.raises(DataError, match="not the terms"):
        terms_from_plain([{**Term("a", "text", value="b", grams="words").to_plain(), "kind": "texts"}])
