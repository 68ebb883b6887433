"""JSON from outside: lines end with "\\n" alone, and what is wrong is named by its place.

uv run pytest tests/utils/test_json_files.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from training.domains.gsm8k import Gsm8kConfig, Gsm8kDomain
from training.examples import load_examples
from utils.config.entrypoint import load_yaml
from utils.json_files import read_json, read_json_lines, read_json_object

# what str.splitlines() takes for the end of a line, and JSON does not
BREAKS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c")


def lines_of(path: Path, *lines: bytes) -> tuple[list[tuple[str, Any]], list[str]]:
    path.write_bytes(b"\n".join(lines))
    problems: list[str] = []
    return list(read_json_lines(path, problems)), problems


@pytest.mark.parametrize("mark", BREAKS)
def test_only_a_newline_ends_a_line(tmp_path: Path, mark: str) -> None:
    text = f"one{mark}two"
    # as it is where JSON allows it, escaped where not
    line = json.dumps(text, ensure_ascii=mark < " ").encode()
    read, problems = lines_of(tmp_path / "a.jsonl", line, b"  ", line + b"\r", b"")
    assert read == [(f"{tmp_path}/a.jsonl, line 1", text), (f"{tmp_path}/a.jsonl, line 3", text)]
    assert not problems


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_files_of_examples_and_of_gsm8k_are_read_so(tmp_path: Path, mark: str) -> None:
    row = {"text": f"a{mark}b", "question": f"Two{mark}?", "answer": f"So{mark} #### 2"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [example.text for example in load_examples(path, [])] == [f"a{mark}b"]
    (problem,) = Gsm8kDomain(Gsm8kConfig(data_path=str(path))).problems("train")
    assert problem.messages[0]["content"].startswith(f"Two{mark}?\n")


def test_lines_that_cannot_be_read_are_told_by_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    read, problems = lines_of(
        path,
        b'{"a": 1}',
        '{"é": }'.encode(),
        b'{"a": "\xe9"}',
        b"[" * 100_000,
        b"9" * 5000,
        b'{"a": [0, {"b": "\\ud83d"}]}',
        b'{"a": "\\ud83d\\ude00", "\\uDE00": 1}',
        b'{"a": "\\ud83d\\ude00"}',
    )
    assert [value for _, value in read] == [{"a": 1}, {"a": "😀"}]
    names = [f"{path}, line {number}" for number in range(2, 8)]
    assert problems == [
        # é is two bytes
        f"{names[0]}, byte 8: no JSON (Expecting value)",
        f"{names[1]}, byte 8: not UTF-8 (invalid continuation byte, 0xe9); save the file as UTF-8",
        f"{names[2]}: JSON nested too deep to be read",
        problems[3],
        f"{names[4]}: a[1].b holds half a surrogate pair (\\ud83d at character 1), which is no "
        "text",
        f"{names[5]}: the key '\\ude00' holds half a surrogate pair (\\ude00 at character 1), "
        "which is no text",
    ]
    assert problems[3].startswith(f"{names[3]}: no JSON (Exceeds the limit")


def test_files_are_told_by_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{\n"é":\n "a" 1}'.encode())
    with pytest.raises(ValueError, match=r"a\.json, line 3, byte 6: no JSON \(Expecting ','"):
        read_json(path)
    path.write_bytes(b'{\n"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.json, line 2, byte 7: not UTF-8 \(.*0xff\)"):
        read_json(path)
    path.write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON object, got list"):
        read_json_object(path)
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ValueError, match=r"a\.json, line 2, byte 4: not UTF-8"):
        load_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b'\xef\xbb\xbf{"a": }')
    with pytest.raises(ValueError, match="line 1, byte 10: no JSON"):
        read_json(path)


def test_all_rows_of_gsm8k_that_are_wrong_are_told(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": "4"}, [1], {"question": 1, "answer": "#### 4"}]
    path = tmp_path / "a.jsonl"
    text = "\n".join(json.dumps(row) for row in [*rows, {"question": "?", "answer": "#### "}])
    path.write_text(text + "\n{", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        Gsm8kDomain(Gsm8kConfig(data_path=str(path))).problems("train")
    told = str(caught.value)
    for wrong in (
        "line 1: answer='4': a text that ends with '#### number' is needed",
        "line 2: an object is needed, got list",
        "line 3: question=1: some text is needed",
        "line 4: answer='#### '",
        "line 5, byte 2: no JSON",
    ):
        assert wrong in told


def test_a_key_that_stands_twice_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    read, problems = lines_of(path, b'{"a": 1, "b": [{"c": 1, "c": 1}]}', b'[{"a": 1}, {"a": 2}]')
    assert [value for _, value in read] == [[{"a": 1}, {"a": 2}]]
    assert problems == [f"{path}, line 1: no JSON (repeated keys ['c'])"]
