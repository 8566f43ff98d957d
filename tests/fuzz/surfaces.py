"""What is fuzzed: each surface makes one damaged input and uses it as the program does.

A surface is a function of a random number generator and an empty directory. It returns where the input could be read,
raises UserError where it is refused, and AssertionError where damage went by unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import surfaces_bombs
import surfaces_data
import surfaces_models
import surfaces_runs

Surface = Callable[[Random, Path], None]

SURFACES: dict[str, Surface] = {
    "settings": surfaces_data.settings,
    "yaml": surfaces_data.yaml_file,
    "texts": surfaces_data.texts,
    "records": surfaces_data.records,
    "collections": surfaces_data.collections,
    "columnar": surfaces_data.columnar,
    "images": surfaces_data.images,
    "lists": surfaces_data.lists,
    "archives": surfaces_data.archives,
    "bombs": surfaces_bombs.bombs,
    "tokenizers": surfaces_models.tokenizers,
    "models": surfaces_models.models,
    "cross_encoders": surfaces_models.cross_encoders,
    "probes": surfaces_models.probes,
    "embeddings": surfaces_models.embeddings,
    "libraries": surfaces_models.libraries,
    "text_cache": surfaces_runs.text_cache,
    "image_cache": surfaces_runs.image_cache,
    "corpora": surfaces_runs.corpora,
    "checkpoints": surfaces_runs.checkpoints,
    "run_files": surfaces_runs.run_files,
}
