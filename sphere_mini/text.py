"""Names as people, files and systems write them: whether two are the same, and how one is shown.

Nothing here imports torch, so that the scripts' --help answers at once.
"""

from unicodedata import normalize


def composed(text: str) -> str:
    """A text with each letter and its accents as one character (NFC); macOS writes them as two."""
    return normalize("NFC", text)


def printable(text: str) -> str:
    """A text in which what cannot be printed, line ends and bytes that are no UTF-8, are codes."""
    return "".join(letter if letter.isprintable() else code_of(letter) for letter in text)


def code_of(letter: str) -> str:
    """A letter as its code, in ASCII, such as \\u6c34."""
    return letter.encode("unicode_escape").decode()


def is_utf8(text: str) -> bool:
    """Whether a name that the system gave is in UTF-8; bytes that are none are surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
