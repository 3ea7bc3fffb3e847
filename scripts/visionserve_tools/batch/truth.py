"""The labels that the user gave images, beside which the predictions stand."""

from collections.abc import Iterator
from pathlib import Path

from visionserve_tools.archive.hashes import sha256_of
from visionserve_tools.batch.provenance import Provenance
from visionserve_tools.batch.rows import RunError
from visionserve_tools.quality import labelled


class Given:
    """Looks up the label that an image was given.

    Args:
        source: a folder with a folder for each class, or a CSV; see `quality.labelled`.

    Attributes:
        provenance: what tells these labels from others.
        missing: how many of the images that `counted` has let pass have no label.

    Raises:
        RunError: the CSV has another form.
        OSError: the source cannot be read.
    """

    def __init__(self, source: Path) -> None:
        self._folder = labelled.absolute(source)
        self._labels: dict[Path, str] | None = None
        self.provenance: Provenance = {"labels": str(source)}
        self.missing = 0
        if source.is_dir():
            return
        try:
            self._labels = labelled.read_csv(source)
        except ValueError as error:
            raise RunError(str(error)) from None
        self.provenance = {"labels": str(source), "labels_sha256": sha256_of(source)}

    def __call__(self, path: Path) -> str | None:
        """Return an image's label, or None if it has none."""
        image = labelled.absolute(path)
        if self._labels is not None:
            return self._labels.get(image)
        try:
            return labelled.class_folder(image, self._folder)
        except ValueError:
            return None

    def counted(self, images: Iterator[Path]) -> Iterator[Path]:
        """Yield images, and count those without a label."""
        for image in images:
            self.missing += self(image) is None
            yield image
