"""Files of texts: each value is what stands in the file, or an error names file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_jv5.texts import read_tables, read_texts
from st_jv5.vectors import Corpus


def rows(path: Path, column: str | None = None, **how: str) -> list[tuple[object, str]]:
    blocks = list(Corpus(path, column, **how).blocks(2))
    return [row for block in blocks for row in zip(block.ids, block.texts, strict=True)]


def test_a_csv_is_all_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n007,NA\n1e3,null\nx,\n" y","a\nb, ""c"""\nTrue,2024-01-01\n')
    expected = [("007", "NA"), ("1e3", "null"), ("x", ""), (" y", 'a\nb, "c"')]
    assert rows(path, "text") == [*expected, ("True", "2024-01-01")]
    assert read_texts(path, "text") == ["NA", "null", 'a\nb, "c"', "2024-01-01"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, words in (("a.txt", "one\ntwo\n"), ("a.csv", "text\none\ntwo\n")):
        (tmp_path / name).write_text(words, encoding="utf-8-sig")
        assert [text for _, text in rows(tmp_path / name)] == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    assert rows(tmp_path / "a.jsonl") == [(0, "one")]


def test_a_name_is_no_pattern(tmp_path):
    for name in ("x1.jsonl", "x[1].jsonl", "y.jsonl", "y*.jsonl", "a b#c?.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    for path in tmp_path.iterdir():
        assert rows(path) == [(0, path.name)]
        assert read_texts(path) == [path.name]


def test_json_is_read_as_a_list_or_by_the_line(tmp_path):
    told = [{"id": "a", "text": "x"}, {"id": "b", "text": "y\u2028z", "more": [1]}]
    (tmp_path / "list.json").write_text(json.dumps(told, indent=1))
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(line) for line in told))
    (tmp_path / "lines.jsonl").write_text("\n\n".join(json.dumps(line) for line in told))
    for path in tmp_path.iterdir():
        assert rows(path, "text") == [("a", "x"), ("b", "y\u2028z")]


X = '{"text": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", X + '{"text": 2024}\n', r"row 1 of .*a.jsonl: 'text' must be a text, not 2024"),
        ("a.jsonl", X + '{"text": {"y": 1}}\n', r"row 1 of .*: 'text' must be a text"),
        ("a.jsonl", X + "{}\n", r"row 1 of .*: 'text' must be a text, not None"),
        ("a.jsonl", X + '{"text": "y"\n', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", X + '["y"]\n', r"a.jsonl, line 2: a row must be an object"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl, line 1: not JSON"),
        ("a.json", '[{"text": "x"}, 3]', r"row 1 of .*a.json must be an object, not '3'"),
        ("a.json", '[{"text": "x"}', r"a.json is not JSON"),
        ("a.jsonl", X + '{"text": "\\ud800"}\n', r"row 1 of .*'text' must be whole Unicode"),
        ("a.csv", "id,text\n1,x\n,y\n", r"row 1 of .*a.csv: 'id' must be a text, not blank"),
        ("a.csv", "id,text\n1,x\n2,y,z\n", r"row 1 of .*a.csv \(line 3\) has 3 fields"),
        ("a.csv", 'id,text\n1,"x\n', r"a.csv, line \d: unexpected end of data"),
        ("a.csv", "text,text\n1,x\n", "has two columns of one name"),
        ("a.txt", "caf\xe9\n".encode("latin-1"), r"a.txt is not UTF-8: byte 0xe9 at line 1"),
        ("a.csv", "text\ncaf\xe9\n".encode("latin-1"), r"a.csv is not UTF-8: byte 0xe9"),
        ("a.txt", "one\n".encode("utf-16"), r"a.txt is not UTF-8: byte 0xff"),
        ("a.parquet", b"PAR1 no", r"a.parquet cannot be read as parquet"),
        ("a.txt", "", r"a.txt has no row"),
        ("a.jsonl", "", r"a.jsonl has no row"),
    ],
    ids=lambda one: str(one)[:24],
)
def test_what_cannot_be_read_is_named_by_file_and_row(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        Corpus(path, "text").summary()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ('"1"', "2", r"row 1 of .*'id' must be a text as in the rows before it, not 2"),
        ("1", '"2"', r"row 1 of .*'id' must be a number as in the rows before it, not '2'"),
        ("1", "true", r"row 1 of .*'id' must be a text, not blank .*, not True"),
        ('"1"', '"a\\u0000"', r"row 1 of .*'id' must be a text, not blank and without NUL"),
        ('"1"', '"\\ud800"', r"row 1 of .*'id' must be whole Unicode"),
        ("1.5", "2", r"row 0 of .*'id' must be a text, .* not 1.5"),
        ("18446744073709551616", "2", "row 0 of .* an integer of 64 bits"),
        ("null", "2", "row 0 of .*'id' must be a text, .* not None"),
    ],
    ids=str,
)
def test_ids_are_texts_or_integers_and_all_of_one_kind(tmp_path, first, second, said):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": {one}, "text": "x"}}\n' for one in (first, second)))
    with pytest.raises(ValueError, match=said):
        Corpus(path, "text").summary()


def test_the_row_is_that_of_its_own_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 5)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"row 1 of .*b.jsonl: 'text' must be a text, not None"):
        Corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).summary()


def test_blocks_are_cut_across_files_and_reads(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.parquet")
        texts = [f"{number} {i}" for i in range(5000)]
        pq.write_table(pa.table({"text": texts}), paths[-1], row_group_size=777)
    blocks = list(Corpus(paths).blocks(1024))
    assert [len(block.texts) for block in blocks] == [1024] * 14 + [15000 - 14 * 1024]
    assert [one for block in blocks for one in block.ids] == list(range(15000))
    assert [block.first for block in blocks] == list(range(0, 15000, 1024))
    assert blocks[5].texts[0] == "1 120"


def test_long_documents_fit_into_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text(f'text\n"{"long, " * 100_000}"\n')
    assert len(rows(tmp_path / "a.csv")[0][1]) == 600_000


def test_a_chosen_column_alone_is_read(tmp_path):
    pq.write_table(pa.table({"a": ["x"], "b": [[1]]}), tmp_path / "a.parquet")
    assert list(read_tables(tmp_path / "a.parquet", ["a"])) == [{"a": ["x"]}]
    assert list(read_tables(tmp_path / "a.parquet", ["a", "c"])) == [{"a": ["x"], "c": [None]}]
