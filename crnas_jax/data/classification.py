"""Read labelled images without boxes, for pre-training: ImageNet's layout and a generated set."""

import hashlib
import pathlib

import numpy as np

from crnas_jax.data import images
from crnas_jax.data.synthetic import CLASS_NAMES, draw_shape, texture
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import as_path

_COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 200)}


class FolderSource:
    """Random access to the images `folder/<class>/<image>`.

    Classes are the subfolders that contain images, in alphabetical order. A
    `crnas_jax.data.source.ClassificationSource`.

    Attributes:
      class_names: names of the labels 0..C-1.
      files: path and label of each image.
      sizes: ones, int32 [images, 2]: crops are square, so all images have one orientation.
      digest: SHA-256 of the names of all files, in hexadecimal.
    """

    def __init__(self, folder: str | pathlib.Path):
        """List the folder.

        Args:
          folder: folder with one subfolder per class.

        Raises:
          UserError: the folder is missing, or there are no images in its subfolders.
        """
        folder = as_path(folder)
        if not folder.is_dir():
            raise UserError(folder, "folder", "missing", "give a folder with one folder per class")
        files_of_class = {
            path.name: [file for file in sorted(path.iterdir()) if images.is_image(file)]
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
        self.class_names = [name for name, files in files_of_class.items() if files]
        self.files = [
            (path, label)
            for label, name in enumerate(self.class_names)
            for path in files_of_class[name]
        ]
        if not self.files:
            raise UserError(
                folder, "images", "there are none", "give a folder with one folder per class"
            )
        self.sizes = np.ones((len(self.files), 2), np.int32)
        names = "\n".join(f"{self.class_names[label]}/{path.name}" for path, label in self.files)
        self.digest = hashlib.sha256(names.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        """Read one image.

        Args:
          index: position of the image.

        Returns:
          `image` uint8 [H, W, 3] RGB, `image_id` int64 and `label` (0-based).

        Raises:
          UserError: the image is missing or broken.
        """
        path, label = self.files[index]
        return {"image": images.read(path), "image_id": np.int64(index), "label": label}


class SyntheticClassification:
    """Random access to generated images, each of one coloured shape on a texture.

    There are nine classes, three shapes in three colours. Image k of a seed is always the same. The
    attributes are those of `FolderSource`.
    """

    def __init__(self, num_images: int, size: int = 64, seed: int = 0):
        """Name the classes; images are generated one by one later.

        Args:
          num_images: number of images.
          size: side of the square images in pixels.
          seed: seed of the split.
        """
        self._num_images, self._size, self._seed = num_images, size, seed
        self.class_names = [f"{colour} {shape}" for colour in _COLOURS for shape in CLASS_NAMES]
        self.sizes = np.ones((num_images, 2), np.int32)
        self.digest = f"synthetic-classification-{num_images}-{size}-{seed}"

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> dict:
        """Generate one image, as a record like that of `FolderSource`."""
        rng = np.random.default_rng([self._seed, 7, index])
        label = index % len(self.class_names)
        colour = list(_COLOURS.values())[label // len(CLASS_NAMES)]
        side = int(self._size * rng.uniform(0.5, 0.9))
        x, y = (int(v) for v in rng.integers(0, self._size - side + 1, 2))
        mask = draw_shape(rng, label % len(CLASS_NAMES) + 1, (x, y, x + side, y + side), self._size)
        image = texture(rng, self._size, contrast=50)
        shape = np.clip(colour + rng.normal(0, 12, image.shape), 0, 255)
        image = np.where(mask[..., None] > 0, shape, image).astype(np.uint8)
        return {"image": image, "image_id": np.int64(index), "label": label}
