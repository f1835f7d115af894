"""Small datasets that several modules read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlib.data import dataset as dataset_module
from gptlib.data.dataset import Dataset, open_dataset, prepare_dataset
from gptlib.fields import DataConfig


@pytest.fixture(scope="session")
def stories_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 stories for training and 60 for validation, BPE of 320."""
    config = DataConfig(documents=300, val_documents=60, vocab_size=320)
    return prepare_dataset(config, tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="session")
def lines_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """400 documents of 1 to 60 bytes (every tenth for validation), in shards of about 500 tokens."""
    folder = tmp_path_factory.mktemp("lines")
    draw = random.Random(5)
    lines = [f"{i}:" + "".join(draw.choices("abcdefgh ", k=draw.randrange(56))) for i in range(400)]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = DataConfig(corpus="text", path=str(folder / "lines.jsonl"), tokenizer="byte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "SHARD_TOKENS", 500)
        return open_dataset(prepare_dataset(config, folder / "outputs"))


@pytest.fixture
def text_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes `text` to a file and describes it."""

    def make(text: str, **fields: Any) -> DataConfig:
        path = tmp_path / "text.txt"
        path.write_text(text, encoding="utf-8")
        return DataConfig(corpus="text", path=str(path), **fields)

    return make
