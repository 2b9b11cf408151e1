"""Labelled images without boxes, for pre-training: ImageNet's folders, and a generated set."""

import hashlib
import pathlib

import numpy as np

from crnas_jax.data import images
from crnas_jax.data.synthetic import CLASS_NAMES, draw_shape, texture
from crnas_jax.errors import UserError

_COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 200)}


class FolderSource:
    """Random access to `folder/<class>/<image>`; classes are the subfolders with images in them,
    in order of name.

    Attributes:
      class_names: of the labels 0..C-1.
      sizes: int32 [images, 2]; one orientation, since crops are square.
      digest: of the names of all files.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Lists the folder.

        Raises:
          UserError: there are no classes, or no images in them.
        """
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise UserError(folder, "folder", "missing", "give a folder with one folder per class")
        files = {
            path.name: [file for file in sorted(path.iterdir()) if images.is_image(file)]
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
        self.class_names = [name for name, inside in files.items() if inside]
        self._files = [
            (path, label) for label, name in enumerate(self.class_names) for path in files[name]
        ]
        if not self._files:
            raise UserError(
                folder, "images", "there are none", "give a folder with one folder per class"
            )
        self.sizes = np.ones((len(self._files), 2), np.int32)
        names = "\n".join(str(path.relative_to(folder)) for path, _ in self._files)
        self.digest = hashlib.sha256(names.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        """`image` uint8 [H, W, 3] RGB, `image_id`, `label` (0-based)."""
        path, label = self._files[index]
        return {"image": images.read(path), "image_id": np.int64(index), "label": label}


class SyntheticClassification:
    """One textured shape of one colour an image: nine classes, deterministic by index."""

    def __init__(self, number: int, size: int = 64, seed: int = 0):
        """Args: images, side in pixels, seed of the split."""
        self._number, self._size, self._seed = number, size, seed
        self.class_names = [f"{colour} {shape}" for colour in _COLOURS for shape in CLASS_NAMES]
        self.sizes = np.ones((number, 2), np.int32)
        self.digest = f"synthetic-classification-{number}-{size}-{seed}"

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict:
        """As `FolderSource`."""
        rng = np.random.default_rng([self._seed, 7, index])
        label = index % len(self.class_names)
        colour = list(_COLOURS.values())[label // len(CLASS_NAMES)]
        side = int(self._size * rng.uniform(0.5, 0.9))
        x, y = (int(v) for v in rng.integers(0, self._size - side + 1, 2))
        mask = draw_shape(rng, label % len(CLASS_NAMES) + 1, (x, y, x + side, y + side), self._size)
        image = texture(rng, self._size, contrast=50)
        inside = np.clip(colour + rng.normal(0, 12, image.shape), 0, 255)
        image = np.where(mask[..., None] > 0, inside, image).astype(np.uint8)
        return {"image": image, "image_id": np.int64(index), "label": label}
