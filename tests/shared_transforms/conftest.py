"""Small series on disk, as scanners' converters write them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.25, 0, -30], [0, 0, 4.0, 5], [0, 0, 0, 1]], dtype=float)


class SeriesWriter:
    """Writes images and sidecars below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.affine = AFFINE
        self.shape = (5, 4, 3)

    def values(self, volume: int = 0, dtype: type = np.int16) -> np.ndarray:
        """[H, W, D], positive, different in each volume and voxel."""
        return (np.arange(np.prod(self.shape)).reshape(self.shape) + 1 + 100 * volume).astype(dtype)

    def image(self, name: str, data: np.ndarray, sidecar: dict | None, affine: np.ndarray | None = None) -> Path:
        """One NIfTI file and, unless None, its sidecar."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, self.affine if affine is None else affine), path)
        if sidecar is not None:
            Path(str(path).replace(".nii.gz", ".json").replace(".nii", ".json")).write_text(json.dumps(sidecar))
        return path

    def inversion_recovery(
        self, times=(0.05, 0.4, 1.0, 2.5), name="ir_{i}.nii.gz", tr: float | None = 5.0, **fields
    ) -> list[Path]:
        """One 3-D file for each inversion time."""
        extra = {} if tr is None else {"RepetitionTime": tr}
        return [
            self.image(name.format(i=i + 1), self.values(i), {"InversionTime": t, "EchoTime": 0.01, **extra, **fields})
            for i, t in enumerate(times)
        ]

    def multi_echo(self, times=(0.01, 0.02, 0.03), name="me_8_e{i}.nii.gz", **fields) -> list[Path]:
        """One 3-D file for each echo."""
        return [
            self.image(name.format(i=i + 1), self.values(i), {"EchoTime": t, "RepetitionTime": 2.0, **fields})
            for i, t in enumerate(times)
        ]

    def four_d(self, times, field="InversionTime", name="series.nii.gz", **fields) -> Path:
        """One 4-D file with a list in its sidecar."""
        data = np.stack([self.values(i) for i in range(len(times))], axis=-1)
        return self.image(name, data, {field: list(times), **fields})


@pytest.fixture
def series(tmp_path: Path) -> SeriesWriter:
    """A writer into a folder of its own."""
    return SeriesWriter(tmp_path / "data")
