"""Names as people, files and systems write them."""

import os

from sphere_mini.errors import composed, is_utf8, printable


def test_accents_are_part_of_their_letter():
    assert composed("cafe\u0301") == composed("caf\u00e9") == "caf\u00e9"


def test_what_cannot_be_printed_is_a_code():
    assert printable("Größe 水") == "Größe 水"
    assert printable("a\nb") == "a\\nb"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_bytes_that_are_no_utf8():
    assert is_utf8("水") and not is_utf8(os.fsdecode(b"caf\xe9"))
