import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.app.dashboard.state import State, parse_region

states = st.builds(
    State,
    run=st.text(st.characters(exclude_categories=["C"]), max_size=40).map(str.strip),
    compare=st.sampled_from(["", "live-2", "a/b"]),
    score=st.sampled_from(["", "zero/delta_loss"]),
    head=st.sampled_from(["", "L0H0", "L31H7"]),
    sequence=st.integers(0, 99),
    token=st.none() | st.integers(0, 5000),
    log=st.booleans(),
    colours=st.sampled_from(["head", "all"]),
    region=st.sampled_from(["", "0-9:3-12"]),
    of=st.sampled_from(["texts", "text"]),
    look=st.sampled_from(["map", "layer", "lines"]),
    role=st.sampled_from(["query", "key"]),
    method=st.sampled_from(["", "MaskKeys", "h2o"]),
    fields=st.dictionaries(st.sampled_from(["keys", "heads", "gamma"]), st.sampled_from(["0,5-9", "L0H1", "0.3"])),
)


@given(states)
def test_the_address_and_the_store_bring_everything_back(state: State) -> None:
    assert State.from_query(state.to_query()) == state
    assert State.from_mapping(state.to_mapping()) == state


@given(st.text(max_size=200) | st.binary(max_size=50).map(lambda raw: raw.decode("latin-1")))
def test_no_address_breaks_it(query: str) -> None:
    assert State.from_query(query).look == "map" or "look" in query


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("?token=-1", "token", None),
        ("?token=1e9999", "token", None),
        ("?sequence=x", "sequence", 0),
        ("?f.<b>=1", "fields", {}),
        ("?fields=x", "fields", {}),
        ("?f.keys=1&f.keys=2", "fields", {"keys": "2"}),
        ("?of=all", "of", "texts"),
        ("?head=<b>", "head", ""),
        ("?method=rm -rf", "method", ""),
        ("?log=1", "log", True),
        ("?log=false", "log", False),
    ],
)
def test_nonsense_keeps_the_default(query: str, field: str, value: object) -> None:
    assert getattr(State.from_query(query), field) == value


def test_another_head_or_result_drops_the_region() -> None:
    state = State(run="a", head="L0H0", region="0-9:0-9")
    assert state.change(token=3).region == "0-9:0-9"
    assert state.change(head="L0H0").region == "0-9:0-9"
    assert state.change(head="L0H1").region == "" == state.change(run="b").region == state.change(sequence=1).region
    assert state.change(head="L0H1", region="1-2:1-2").region == "1-2:1-2"


@given(st.tuples(*[st.integers(0, 9999)] * 2), st.tuples(*[st.integers(1, 300)] * 2))
def test_regions_are_read_from_text(first: tuple[int, int], size: tuple[int, int]) -> None:
    region = (first[0], first[0] + size[0], first[1], first[1] + size[1])
    assert parse_region(f"{region[0]}-{region[1] - 1}:{region[2]}-{region[3] - 1}") == region
