"""Images as training data: opened from anywhere, checked, and read as batches.

`open_images` takes a path to a file, a folder or a pattern of files, a list of `Path` objects, `sample:` and `hub:`
names, and from Python a list of PIL images, of uint8 arrays or of pairs (image, caption), a `datasets.Dataset`, a data
frame or an Arrow table. Files are images, archives in WebDataset's layout, tables with a column of images, and lists of
paths, which are relative to the list; docs/formats.md lists the kinds. Where image files lie in several folders and
none lies above the others, the name of its folder is an image's class.

A folder of several kinds is read as images, else as archives, tables or lists of paths, the first that it holds.
Captions are read where they are asked for: see `selfsup.data.pairs`.
"""

from selfsup.data.images.collection import Images, Unreadable, open_images
from selfsup.data.images.records import ImageRecords, split_images

__all__ = ["ImageRecords", "Images", "Unreadable", "open_images", "split_images"]
