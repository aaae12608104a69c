"""The commands of the README and the docs: each is understood, and those without a download run."""

import glob
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run
from PIL import Image

import sample
import train
from sphere_mini.config import SIZES
from sphere_mini.files import shipped_models

PAGES = ["README.md", *glob.glob("docs/*.md", root_dir=ROOT)]
PAGES += ["examples/README.md", *glob.glob("checkpoints/*/README.md", root_dir=ROOT)]
PLACES = {"$RUN": "fashion_mnist", "NAME": "digits"}
MOST_WORDS = 1300  # of the README
MOST_COLUMNS = 120  # of prose; rows of tables and links may be longer
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LEAST_COMMANDS = 40
LEAST_RUN = 8


def commands_of(page):
    """The words of each command of our scripts, in blocks and in the midst of text."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    found = []
    for language, block in BLOCK.findall(text):
        if not language:
            found += block.splitlines()
    found += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    for line in found:
        if not re.match(r"(python|torchrun)\b.*\b(train|sample)\.py( |$)", line):
            continue
        words = [PLACES.get(word, word) for word in shlex.split(line, comments=True)]
        script = next(k for k, word in enumerate(words) if word in ("train.py", "sample.py"))
        yield words[script:]


COMMANDS = [(page, words) for page in PAGES for words in commands_of(page)]


def test_there_are_commands():
    assert len(COMMANDS) > LEAST_COMMANDS and len(runnable()) > LEAST_RUN


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= MOST_WORDS
    prose = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert not [line for line in prose if len(line) > MOST_COLUMNS]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(w) for _, w in COMMANDS])
def test_each_command_is_understood(page, words, monkeypatch):
    script, *flags = words
    if "--help" in flags or "..." in flags or words == ["sample.py"]:
        return
    if script == "train.py":
        monkeypatch.setattr(sys, "argv", words)
        args = train.parse_args()
        assert args.model is None or args.model in SIZES
    else:
        args = sample.parse_args(flags)
        assert args.run == flags[0]
        named = [*getattr(args, "images", []), *filter(None, [getattr(args, "image", None)])]
        pictures = [path for path in named if path.startswith("examples/")]
        assert all(glob.glob(path, root_dir=ROOT) for path in pictures)


def runnable():
    """The README's and the examples' commands that need neither a download nor training."""
    found = []
    for page, words in COMMANDS:
        model = Path([*words, ""][1]).name
        is_drawing = words[0] == "sample.py" and model in shipped_models()
        if page in ("README.md", "examples/README.md") and is_drawing and "evaluate" not in words:
            found.append(words)
    return found


@pytest.mark.parametrize("words", runnable(), ids=" ".join)
def test_what_draws_works_as_pasted(words, tmp_path):
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    pasted = []
    for word in words:
        pasted += sorted(glob.glob(word, root_dir=tmp_path)) or [word]
    done = run(*pasted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "pictures").rglob("*.png"))


def meaning_of(words):
    """What a command of sample.py asks for, wherever its model and its picture lie."""
    args = vars(sample.parse_args(words))
    return args | {"run": Path(args["run"]).name, "out": None}


CARDS = ["README.md", *glob.glob("checkpoints/*/README.md", root_dir=ROOT)]


@pytest.mark.parametrize("page", CARDS)
def test_a_picture_stands_with_the_command_that_made_it(page):
    flags = [flags for script, *flags in commands_of(page) if script == "sample.py" and flags]
    commands = [meaning_of(words) for words in flags if "--help" not in words]
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / page).read_text())
    assert pictures
    for picture in pictures:
        text = Image.open((ROOT / page).parent / picture).text
        assert meaning_of(shlex.split(text["command"])[2:]) in commands, picture


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            if not link.startswith("http"):
                assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"
