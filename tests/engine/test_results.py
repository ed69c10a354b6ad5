from __future__ import annotations

from metalearn.engine.results import protocol_name


def test_plain_protocols_are_named_in_words() -> None:
    assert protocol_name("test", ["data.way=20", "eval.split=test"]) == "test_data.way=20"
    assert protocol_name("val", []) == "val"


def test_protocols_whose_names_were_cut_have_folders_of_their_own() -> None:
    long = [f"data.key_{number}={number}" for number in range(20)]
    names = {protocol_name("test", [*long, f"zeta={value}"]) for value in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 120 for name in names)


def test_protocols_whose_odd_characters_were_replaced_have_folders_of_their_own() -> None:
    assert protocol_name("test", ["data.root=/a/b"]) != protocol_name("test", ["data.root=/a:b"])
    assert protocol_name("test", ["data.root=/a/b"]).startswith("test_data.root=-a-b-")
