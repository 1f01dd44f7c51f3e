from __future__ import annotations

import unicodedata

from resdet.data.image_folder import take_variants

NFD = unicodedata.normalize("NFD", "Ärger.png")
NFC = unicodedata.normalize("NFC", "Ärger.png")


def taken(folder, files: list[str], annotated: list[str]) -> tuple[list[str], int, list[str]]:
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"x")
    entries, count, problems = take_variants([{"id": k, "file_name": n} for k, n in enumerate(annotated)], folder)
    return [entry["file_name"] for entry in entries], count, problems


def test_unique_variants_are_taken_and_counted(tmp_path) -> None:
    files = [NFD, "Sub/b.JPG", "c.png", "d.jpg", "Sub/e.1.png", "c.txt", "gone.txt"]
    annotated = [NFC, "sub/B.jpg", "c.png", "d", "sub/E.1.bmp", "gone.png"]
    names, count, problems = taken(tmp_path, files, annotated)
    assert names == [NFD, "Sub/b.JPG", "c.png", "d.jpg", "Sub/e.1.png", "gone.png"]
    assert count == 4
    assert problems == []


def test_ambiguous_ones_are_named(tmp_path) -> None:
    files = ["A.png", "a.PNG", "d.png", "e.jpg", "e.png"]
    names, count, problems = taken(tmp_path, files, ["a.png", "d.png", "D.png", "d.jpg", "e.bmp"])
    assert names == ["a.png", "d.png", "D.png", "d.jpg", "e.bmp"]
    assert count == 0
    assert "'A.png' and 'a.PNG' are, which differ by case, Unicode form or suffix" in problems[0]
    assert "image 2: file_name 'D.png' is not there, but 'd.png' is, which another image has" in problems[1]
    assert "image 3: file_name 'd.jpg' is not there, but 'd.png' is, which another image has" in problems[2]
    assert "image 4: file_name 'e.bmp' is not there, but 'e.jpg' and 'e.png' are" in problems[3]


def test_odd_names_stay_for_others_to_report(tmp_path) -> None:
    odd = ["", "\0", "../x.png", "/etc/passwd", "a/" * 300, "A.png"]
    assert taken(tmp_path, ["a.png"], odd)[0] == [*odd[:-1], "a.png"]
    assert take_variants([{"id": 1}, {"id": 2, "file_name": 7}], tmp_path)[0] == [{"id": 1}, {"id": 2, "file_name": 7}]
