"""Where a model's files are: in a folder, or on the Hugging Face hub."""

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError, require
from .text import is_utf8

HUB_PREFIX = "hf://"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PRIOR_FILE = "prior.safetensors"  # ours, where there is one: see prior.py
JUDGE_FILE = "judge.safetensors"  # likewise: see judge.py
FILES = [CONFIG_FILE, WEIGHTS_FILE, PRIOR_FILE, JUDGE_FILE]


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload a model's files to the hub as "owner/name", made if missing: "hf://owner/name".

    `UserError` where that fails.
    """
    from huggingface_hub import HfApi  # here: slow to import, and rarely needed

    name = name.removeprefix(HUB_PREFIX)
    api = HfApi()
    try:
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A sphere encoder")
    except Exception as error:  # the hub's own errors, and those of any network layer below it
        advice = "check the name and the network, and log in with `hf auth login`"
        problem = f"{name} could not be written to the hub ({type(error).__name__})"
        raise UserError(f"{problem}; {advice}") from error
    return HUB_PREFIX + name


def local_folder(folder: str | Path, files: Sequence[str] = FILES) -> Path:
    """The folder itself, or the local copy of "hf://owner/name"; `UserError` without either.

    files: those that are fetched, as patterns.
    """
    if not str(folder).startswith(HUB_PREFIX):
        advice = "pass a run folder of train.py or a model folder"
        require(os.path.isdir(folder), f"there is no folder {folder}; {advice}")
        problem = f"{folder} is not in UTF-8, and weights cannot be read from there"
        require(is_utf8(str(folder)), f"{problem}; rename it")
        return Path(folder)
    from huggingface_hub import snapshot_download  # here: slow to import, and rarely needed

    name = folder.removeprefix(HUB_PREFIX)
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the hub's own errors, and those of any network layer below it
        advice = "check the name and the network, or pass a local folder with its files"
        problem = f"{folder} could not be fetched ({type(error).__name__})"
        raise UserError(f"{problem}; {advice}") from error
