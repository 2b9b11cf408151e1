"""Find images that come twice, in one split or in two, whatever their names."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from crnas_jax.data.stored import StoredImage


def copies(images: Mapping[str, Sequence[StoredImage]]) -> list[list[tuple[str, str]]]:
    """Group the images with the same content.

    Only images of equal size are opened, and at first only a part of each is read, so that a
    hundred thousand files take seconds.

    Args:
      images: encoded images by split.

    Returns:
      Groups of (split, name), each of at least two different names; [] if all images differ.
    """
    by_size = defaultdict(list)
    for split, stored_images in images.items():
        seen_names = set()
        for index, image in enumerate(stored_images):
            if image.name not in seen_names:
                seen_names.add(image.name)
                by_size[image.num_bytes].append((split, index))
    groups = list(by_size.values())
    for part in ("sample", "digest"):
        subgroups = defaultdict(list)
        for number, group in enumerate(groups):
            if len(group) > 1:
                for split, index in group:
                    key = getattr(images[split][index], part)()
                    subgroups[number, key].append((split, index))
        groups = [group for group in subgroups.values() if len(group) > 1]
    return [[(split, images[split][index].name) for split, index in group] for group in groups]
