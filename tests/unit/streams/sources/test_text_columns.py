"""Lines read from their bytes at once are what they are cell by cell."""

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streams.sources.draft import Words
from streams.sources.registry import source_format
from streams.sources.text_columns import Scanned, Split, lines_of, scan
from streams.sources.text_records import LINES, Layout, heads
from tests.bench.fuzz_sources import EXAMPLES, as_seen

FIELDS = ("name", "number", "word")
LAYOUT = Layout(" ", {3: FIELDS}.get, lambda first: "#" in "".join(first), heads("#"), lambda cells: None, "3 of them")
MEANINGS = Words({"ACCEPT": 1, "-": 0, None: 7}, 5)

cells = st.one_of(
    st.integers(0, 10**20).map(str),
    st.sampled_from(["-", "--", "-1", "0", "007", "1.5", "1e3", "ACCEPT", "x", "0x1F", "+1", "1_0", "\x7f", "\t"]),
    st.text("0123456789abc-", min_size=1, max_size=6),
)
tables = st.lists(st.tuples(cells, cells, cells), min_size=16, max_size=40)


@given(tables, st.data())
def test_both_ways_give_the_same_columns(rows: list[tuple[str, str, str]], data: st.DataObject) -> None:
    values = [" ".join(row).encode() for row in rows]
    quick = scan(values, LAYOUT)
    one_by_one = [lines_of([value], LINES, LAYOUT)[1] for value in values]
    if any(row[0].startswith("\t") or row[2].endswith("\t") for row in rows):
        assert quick is None  # a line that may be something else
        return
    assert isinstance(quick, Scanned) and all(isinstance(each, Split) for each in one_by_one)
    slow = lines_of(values[:15], LINES, LAYOUT)[1]  # too few to be worth it
    assert isinstance(slow, Split) and slow.size == 15
    picked = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)), dtype=np.int64)
    for name in (*FIELDS, "absent"):
        texts = list(quick.texts(name))
        assert texts == [each.texts(name)[0] for each in one_by_one if each is not None]
        assert [quick.texts(name)[row] for row in range(len(rows))] == texts
        assert list(quick.texts(name)[2:5]) == texts[2:5]
        for what in ("integers", "words"):
            arguments: tuple[Any, ...] = (MEANINGS, name) if what == "words" else (name,)
            found = getattr(quick, what)(*arguments).tolist()
            assert found == [int(getattr(each, what)(*arguments)[0]) for each in one_by_one]
            assert getattr(slow, what)(*arguments).tolist() == found[:15]
            assert getattr(quick.take(picked), what)(*arguments).tolist() == [found[row] for row in picked]
            few = picked[picked < 15]
            assert getattr(slow.take(few), what)(*arguments).tolist() == [found[row] for row in few]
        floats = np.concatenate([each.floats(name) for each in one_by_one if each is not None])
        assert np.array_equal(quick.floats(name), floats, equal_nan=True)
        coded = quick.coded(name)
        assert [coded.values[code] for code in coded.codes] == texts
        said = [None if text == "-" else text for text in texts]
        assert list(map(quick.by_row(name), range(len(rows)))) == said
        assert list(map(slow.by_row(name), range(15))) == said[:15]
        picked_again = quick.take(picked).coded(name)
        assert [picked_again.values[code] for code in picked_again.codes] == [texts[row] for row in picked]


LINE = b"a 1 ACCEPT"


@pytest.mark.parametrize(
    "odd",
    [
        b"a 1",
        b"a 1 ACCEPT x",
        b"a  ACCEPT",
        b" a 1 ACCEPT",
        b"a 1 ACCEPT ",
        b"a 1 ACCEPT\na 1 ACCEPT",
        b"a 1 ACCEPT\r",
        b"",
        b"\n",
        "ä 1 ACCEPT".encode(),
        b"\xff 1 ACCEPT",
        b"{ 1 ACCEPT",
        b"[ 1 ACCEPT",
        b"\x00 1 ACCEPT",
        b"\xef\xbb\xbfa 1 ACCEPT",
        b"#x 1 ACCEPT",
    ],
)
def test_what_may_be_something_else_is_looked_at_one_by_one(odd: bytes) -> None:
    assert isinstance(scan([LINE] * 20, LAYOUT), Scanned)
    assert scan([*[LINE] * 10, odd, *[LINE] * 10], LAYOUT) is None
    assert scan([LINE] * 3, LAYOUT) is None


def test_line_ends_are_taken_off_where_lines_have_them() -> None:
    found = scan([LINE + b"\n"] * 20, LAYOUT)
    assert found is not None and list(found.texts("word")) == ["ACCEPT"] * 20


# -- formats -----------------------------------------------------------------------------------------------------------

AWS = "2 1 eni-{n} 10.0.{n}.1 10.0.0.2 4{n:04} 443 6 20 42{n} 1418530010 1418530070 ACCEPT OK"
AWS_GAP = "2 1 eni-{n} - - - - - - - 1431280876 1431280934 - {state}"
ZEEK = "14{n:02}.25\tC{n}\t10.0.0.{n}\t40000\t10.0.0.2\t80\ttcp\t-\t2.{n}\t7\t9\tSF\t-\t-\t-\t-\t{n}\t-\t-\t-\t-"


def wrapped(lines: list[str], key: str = "message") -> list[bytes]:
    return [json.dumps({key: line, "@timestamp": "x"}).encode() for line in lines]


def aws_lines() -> list[str]:
    lines = [AWS.format(n=n) for n in range(40)]
    lines[7], lines[8] = AWS_GAP.format(n=7, state="NODATA"), AWS_GAP.format(n=8, state="SKIPDATA")
    lines[9] = lines[9].replace("ACCEPT", "MAYBE")
    lines[10] = lines[10].replace(" 443 ", " 70000 ")
    lines[11] = lines[11].replace(" 6 20 ", " 6 x ")
    return lines


def zeek_lines() -> list[str]:
    lines = [ZEEK.format(n=n) for n in range(40)]
    lines[3] = lines[3].replace("\tSF\t", "\t-\t")
    lines[4] = lines[4].replace("10.0.0.4", "nowhere")
    lines[5] = lines[5].replace("1405.25", "2024-01-01T00:00:00Z")
    lines[6] = lines[6].replace("tcp", "icmp").replace("40000", "3")
    return lines


@pytest.mark.parametrize("name", ["aws-vpc", "zeek-conn"])
@pytest.mark.parametrize("shape", ["bare", "ends", "message", "log"])
@pytest.mark.parametrize("odd", [None, b"#close\t2024", b"x", b'{"a":1}', b""])
def test_many_lines_are_what_each_is_alone(name: str, shape: str, odd: bytes | None) -> None:
    lines = aws_lines() if name == "aws-vpc" else zeek_lines()
    values = wrapped(lines, shape) if shape in ("message", "log") else [line.encode() for line in lines]
    if shape == "ends":
        values = [value + b"\n" for value in values]
    if odd is not None:
        values.insert(20, odd)
    reading = source_format(name)
    together = reading.decode(values)
    alone = [(n, *entry[1:]) for n, value in enumerate(values) for entry in as_seen(reading.decode([value]))]
    assert as_seen(together) == alone
    assert len(together.runs) <= 2 + 2 * (odd is not None) and len(alone) >= 36
    for run in together.runs:
        assert all(run.payload(row) == values[int(run.message[row])] for row in range(len(run.message)))
        hosts = run.hosts(range(len(run.message)))
        assert name != "aws-vpc" or hosts[0].startswith("eni-")


@pytest.mark.parametrize("name", ["netobserv", "hubble", "istio-access", "suricata-eve", "zeek-conn"])
def test_many_wrapped_records_are_what_each_is_alone(name: str) -> None:
    cases = map(json.loads, (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    records = [case["value"] for case in cases if case["format"] == name]
    bare = [record for record in records if not record.startswith("[")]
    values = wrapped([*bare, *bare[::-1]]) + wrapped(bare, "log")
    values.insert(5, b"[" + values[0] + b"," + values[1] + b"]")
    values.insert(9, b'{"message":null}')
    values.insert(12, records[0].encode())
    reading = source_format(name)
    alone = [(n, *entry[1:]) for n, value in enumerate(values) for entry in as_seen(reading.decode([value]))]
    assert as_seen(reading.decode(values)) == alone
    assert as_seen(reading.decode(values)) == alone  # once more, after its last spelling
