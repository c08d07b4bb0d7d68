"""Prompt files: what is read, in which encodings, and the sentence for each way a file can be broken."""

import pytest

from diffdistill.data.prompts import Prompt, digest_of, read_prompts, spread
from diffdistill.errors import DataError

WORDS = "ein Käse 🧀\nein „Haus“\n"
PROMPTS = (Prompt("ein Käse 🧀"), Prompt("ein „Haus“"))


def write(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_is_a_prompt_in_unicode_of_any_kind_and_with_any_end(tmp_path, encoding, end):
    file = write(tmp_path, "p.txt", WORDS.replace("\n", end).encode(encoding))
    assert read_prompts(file) == PROMPTS
    assert read_prompts(write(tmp_path, "q", WORDS.removesuffix("\n").replace("\n", end).encode(encoding))) == PROMPTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_big_and_little_endian_are_told_by_their_mark(tmp_path, encoding):
    assert read_prompts(write(tmp_path, "p.txt", ("\ufeff" + WORDS).encode(encoding))) == PROMPTS


def test_separators_that_are_no_ends_of_lines_stay_in_the_prompt(tmp_path):
    assert [p.text for p in read_prompts(write(tmp_path, "p.txt", "a\u2028b\n  c\x0cd \n"))] == ["a\u2028b", "c\x0cd"]


def test_csv_has_negative_prompts_and_seeds_and_quoted_commas_and_lines(tmp_path):
    text = 'id, Prompt ,negative_prompt,seed\r\n1,"a cat, asleep",blurry,7\r\n\r\n2,"two\r\nlines",,\r\n3,plain\r\n'
    expected = (Prompt("a cat, asleep", "blurry", 7), Prompt("two\nlines"), Prompt("plain"))
    assert read_prompts(write(tmp_path, "p.csv", text)) == expected


def test_jsonl_has_the_same_keys_and_text_means_prompt(tmp_path):
    text = '{"prompt": "a", "seed": 3, "other": [1]}\n\n{"text": "b", "negative_prompt": "", "seed": null}\n'
    assert read_prompts(write(tmp_path, "p.jsonl", text)) == (Prompt("a", None, 3), Prompt("b", "", None))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", "a\n \nb\n", r"line 2 of '.*p\.txt': the prompt is empty; write a text or take the line out"),
        ("p.txt", "a\n\n", "line 2 of .* the prompt is empty"),
        ("p.txt", "", r"'.*p\.txt' holds no prompt: write one a line"),
        ("p.txt", b"\xef\xbb\xbf", "holds no prompt"),
        ("p.txt", "a\nK\xe4se\n".encode("latin-1"), r"line 2 of .* is not UTF-8 \(byte 3\): save the file as UTF-8"),
        ("p.txt", "a\nb\n".encode("utf-16-le"), "zero bytes, as UTF-16 without a byte order mark"),
        ("p.txt", b"\xff\xfea\x00\x00", r"is not UTF-16 \(byte 4\): save the file as UTF-8"),
        ("p.json", "[]", r"is no prompt file: give \.txt \(one prompt a line\), \.csv or \.jsonl"),
        ("p.csv", "", "holds no prompt"),
        ("p.csv", "prompt,Prompt\na,b\n", "line 1 of .* names the column 'prompt' twice: leave one"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}', "line 2 of .* has the key 'prompt' twice"),
        ("p.csv", "prompt,seed\n", "holds no prompt"),
        ("p.csv", "cat;dog\n", "line 1 of .* names no column 'prompt' or 'text', only 'cat;dog'"),
        ("p.csv", "prompt\nok\na, b\n", "line 3 of .* has 2 fields and the header 1: put quotation marks"),
        ("p.csv", 'prompt\n"two\nlines"\n"open\n', "line 4 of .* is not CSV"),
        ("p.csv", 'prompt\n"two\nlines"\n"a"b\n', "line 4 of .* is not CSV"),
        ("p.csv", "seed,prompt\n1,a\n2\n", "line 3 of .* has no 'prompt'"),
        ("p.csv", "seed,prompt\n1,a\n2,\n", "line 3 of .*: the prompt is empty"),
        ("p.csv", "prompt,seed\na,4294967296\n", "line 2 of .* has the seed 4294967296: .* up to 4294967295"),
        ("p.csv", "prompt,seed\na,1.5\n", "line 2 of .* has the seed '1.5': seeds are whole numbers >= 0"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "line 2 of .* is not JSON .*: write one object a line"),
        ("p.jsonl", '{"prompt": "a"}\n["b"]\n', "line 2 of .* is no JSON object"),
        ("p.jsonl", '{"caption": "a"}\n', "line 1 of .* has no 'prompt': give every line its text"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1 of .* has no 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}\n', "line 1 of .* has the seed -1"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "line 1 of .* has the seed True"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": 3}\n', "line 1 of .* has the negative_prompt 3"),
        ("p.jsonl", '{"prompt": "a \\ud83d"}\n', "line 1 of .* holds half of a character"),
        ("p.jsonl", '{"prompt": ' + "[" * 100_000 + "\n", "line 1 of .* is not JSON"),
    ],
)
def test_a_broken_file_is_one_sentence_with_the_number_of_the_line(tmp_path, name, content, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_prompts(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_or_a_folder_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\): check the path"):
        read_prompts(tmp_path / "absent.txt")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_prompts(tmp_path)


def test_the_digest_sees_every_part_of_every_prompt():
    prompts = [Prompt("a"), Prompt("b", "c", 1)]
    changed = [[*prompts[:1], other] for other in (Prompt("x", "c", 1), Prompt("b", None, 1), Prompt("b", "c", 2))]
    assert len({digest_of(found) for found in [prompts, prompts[::-1], *changed]}) == 5
    assert digest_of(prompts) == digest_of(tuple(prompts))


def test_some_of_sorted_captions_are_taken_from_all_along():
    assert spread("abcdefghij", 4) == ["a", "c", "f", "h"]
    assert spread("abc", 9) == ["a", "b", "c"]
