"""Which class a text says: by its name, or by its number where that cannot be meant as a name.

Nothing here imports torch, so that the scripts' --help answers at once.
"""

import re
import textwrap
from collections.abc import Sequence

from .errors import UserError
from .text import composed, printable


def class_number(text: str, names: Sequence[str], num_classes: int) -> int:
    """The class that `text` says, 0 ... num_classes - 1; `UserError` where it says none.

    names: of the classes, or (). A name may be in the form that is printed of it, and its accents
    as any system writes them.
    """
    choices = list(names)
    for form in (str, composed, printable):
        forms = [form(name) for name in choices]
        if form(text) in forms:
            return forms.index(form(text))
    if has_plain_numbers(names, num_classes):
        if text.isdecimal() and int(text) < num_classes:
            return int(text)
        choices.insert(0, f"a number in 0 ... {num_classes - 1}")
    known = textwrap.shorten(f"give {', '.join(choices)}", 300, placeholder=" ...")
    raise UserError(f"there is no class {text!r}; {known}")


def has_plain_numbers(names: Sequence[str], num_classes: int) -> bool:
    """Whether a number is a class's number: no name holds one that could be meant instead."""
    return not any(holds_number(name, num_classes) for name in names)


def holds_number(name: str, most: int) -> bool:
    """Whether a name holds a number that one may mean by the number alone.

    It stands for itself, as in "+1" and "2 stars", or is `most` or less, as in "class3"; those of
    "n01440764" are neither.
    """
    for found in re.finditer(r"\d+", name):
        stands_alone = not name[: found.start()][-1:].isalpha()
        if stands_alone or int(found[0]) <= most:
            return True
    return False
