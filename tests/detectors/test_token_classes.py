"""Classes of tokens: chat turns of the usual templates, packed documents, occurrences, and the nulls of packing."""

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens.detectors.measure import measure
from sinklens.detectors.token_classes import by_class, token_classes
from sinklens.errors import InputError
from sinklens.models.token_batch import TokenBatch
from sinklens.models.tokens import as_batch
from tests.passes.planted_sink import planted_sink, sink_ids


def batch_of(*rows: str, special: str = "<", bos: str = "<s>") -> TokenBatch:
    """Tokens divided by '|' that stands between spaces; those with ``<`` or ``[`` first are special."""
    tokens = tuple(tuple(part for part in row.split(" | ")) for row in rows)
    width = max(map(len, tokens))
    ids = torch.zeros(len(tokens), width, dtype=torch.long)
    real = torch.zeros_like(ids, dtype=torch.bool)
    marks = torch.zeros_like(real)
    for row, words in enumerate(tokens):
        for place, word in enumerate(words):
            real[row, place] = True
            marks[row, place] = word.startswith(("<|", "<s", "</", "[", "<start", "<end"))
            ids[row, place] = 1 if word == bos else 5 + place
    return TokenBatch(ids, real, marks, tokens, 1, "caller", "")


@pytest.mark.parametrize(
    ("row", "roles", "turns"),
    [
        (
            "<|im_start|> | system | \n | Be kind | <|im_end|> | \n | <|im_start|> | user | \n | Hi | <|im_end|>",
            ["system"] * 5 + [None] + ["user"] * 5,
            [0] * 5 + [None] + [1] * 5,
        ),
        (
            "<s> | <start_of_turn> | user | \n | Hi | <end_of_turn> | \n | <start_of_turn> | model | \n | Yes",
            [None] + ["user"] * 5 + [None] + ["assistant"] * 4,
            [None] + [0] * 5 + [None] + [1] * 4,
        ),
        (
            "<s> | <|start_header_id|> | assist | ant | <|end_header_id|> | \n\n | Yes | <|eot_id|>",
            [None] + ["assistant"] * 7,
            [None] + [0] * 7,
        ),
        ("<s> | [INST] | Hi | [/INST] | Yes", [None, "user", "user", "assistant", "assistant"], [None, 0, 0, 1, 1]),
        ("no | chat | at all", [None] * 3, [None] * 3),
    ],
)
def test_roles_and_turns_of_templates(row: str, roles: list[str | None], turns: list[int | None]) -> None:
    found = token_classes(batch_of(row))
    assert [None if pd.isna(role) else role for role in found["role"]] == roles
    assert [None if pd.isna(turn) else int(turn) for turn in found["turn"]] == turns


def test_packed_documents_count_from_their_own_start() -> None:
    batch = batch_of("<s> | The | cat | </s> | <s> | the | The | cat", "a | b")
    found = token_classes(batch)
    first = found[found["sequence"] == 0]
    assert first["document"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert first["document_position"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert first["bos_like"].tolist() == [True, False, False, False, True, False, False, False]
    assert first["occurrence"].tolist() == ["start", "first", "first", "first", "start", "first", "first", "first"]
    words = [None if pd.isna(word) else word for word in first["word_occurrence"]]
    assert words == [None, "first", "first", None, None, "first", "later", "first"]
    assert found[found["sequence"] == 1]["bos_like"].tolist() == [True, False]
    chat = batch_of("<|im_start|> | user | \n | <|im_end|> | <|im_start|> | user | \n", bos="<|im_start|>")
    assert set(token_classes(chat)["document"]) == {0}  # a BOS that marks turns begins no document
    given = token_classes(batch, documents=[[0, 0, 5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0, 0]])
    assert given["document"].tolist()[:4] == [0, 0, 1, 1]
    for wrong in ([[0, 1]], [[1, 0, 0, 0, 0, 0, 0, 0], [0] * 8]):
        with pytest.raises(InputError):
            token_classes(batch, documents=wrong)


def test_the_nulls_are_even_attention_with_and_without_a_wall() -> None:
    """Against patterns written out: the start of a second document has the null of position 0 only behind a wall."""
    found = token_classes(batch_of("<s> | a | b | </s> | <s> | c | d"))
    document = found["document"].to_numpy()
    for column, wall in (("null", False), ("null_document", True)):
        pattern = np.tril(np.ones((7, 7)))
        if wall:
            pattern *= document[:, None] == document[None]
        pattern /= pattern.sum(1, keepdims=True)
        queries = np.array([[i >= k and (not wall or document[i] == document[k]) for k in range(7)] for i in range(7)])
        expected = [(pattern[:, k] * queries[:, k]).sum() / queries[:, k].sum() for k in range(7)]
        assert found[column].to_numpy() == pytest.approx(expected)
    assert found["null"][4] < 0.2 < found["null_document"][4]


def test_any_table_is_grouped_and_a_planted_sink_stands_out() -> None:
    """The planted head rests on its token wherever a document starts with it; grouped by class that shows."""
    model = planted_sink()
    ids = sink_ids(4, 24)
    ids[:, 12] = 5
    batch = as_batch(model, ids)
    documents = torch.zeros_like(ids)
    documents[:, 12:] = 1
    classes = token_classes(batch, documents=documents)
    tokens = measure(model, batch, "tokens").tables["tokens"]
    found = by_class(tokens, classes, "bos_like").set_index("bos_like")
    assert found.loc[True, "n_tokens"] == 8 and found.loc[True, "token_share"] == pytest.approx(8 / 96)
    own = tokens.merge(classes, on=["sequence", "position"])
    starts = own[own["bos_like"]]
    assert found.loc[True, "received"] == pytest.approx(starts.groupby("sequence")["received"].mean().mean())
    assert found.loc[True, "received"] > 1.2 * found.loc[True, "null"]
    assert found.loc[False, "received"] < 1.1 * found.loc[False, "null"]
    without = by_class(measure(planted_sink(strength=0), batch, "tokens").tables["tokens"], classes, "bos_like")
    assert without.set_index("bos_like").loc[True, "received"] < 1.1 * found.loc[True, "null"]
    few = by_class(tokens.iloc[:3], classes, ["document", "occurrence"], ["peak_ratio"])
    assert few["n_rows"].sum() == 3 and few["n_tokens"].sum() == 96
    for wrong in (tokens.drop(columns="position"), tokens.assign(position=99)):
        with pytest.raises(InputError):
            by_class(wrong, classes)
    with pytest.raises(InputError, match="colour"):
        by_class(tokens, classes, "colour")
