"""Images as training data: opened from anywhere, checked, and read as batches.

What `open_images` accepts:

- a path to an image (`.jpg`, `.png`, `.webp`, `.gif`, `.bmp`, `.tif`, `.avif`, `.heic`); a folder (read recursively,
  hidden files left out, in the order of the paths) or a pattern of them. Where the images lie in several folders and
  none lies above the others, the name of its folder is an image's class;
- `.parquet`, `.arrow`, `.feather`, a Lance data set or a directory of `datasets.save_to_disk`, with a column of images,
  as bytes, as paths or in the hub's layout;
- `.csv`, `.tsv`, `.jsonl` or `.json` with a column of paths, which are relative to the file, or captions of COCO;
- `.tar` (compressed too) in WebDataset layout: files of one record share their name up to the first dot, `.cls` holds
  its class;
- `sample:emoji`, the bundled pictures, and `hub:NAME[/CONFIG][:SPLIT]`, a data set of the Hugging Face hub;
- from Python also a list of PIL images, of uint8 arrays, of `Path` objects or of pairs (image, caption), a
  `datasets.Dataset`, a data frame or an Arrow table.

A folder of several kinds is read as images, else as archives, tables or lists of paths, the first that it holds.
Captions are read where they are asked for: see `selfsup.data.pairs`.
"""

from selfsup.data.images.collection import Images, Unreadable, open_images
from selfsup.data.images.records import ImageRecords, split_images

__all__ = ["ImageRecords", "Images", "Unreadable", "open_images", "split_images"]
