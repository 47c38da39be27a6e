"""What every transform that writes files is."""

from __future__ import annotations

from monai.config import KeysCollection
from monai.transforms import MapTransform, SaveImaged


class FileWriterd(SaveImaged):
    """A transform that writes files in its own way.

    It counts as MONAI's ``SaveImaged``, by which programs that want the result and no files (MONAI Label) know what to
    leave out of the postprocessing.

    Args:
        keys: of what is written.
        allow_missing_keys: see MapTransform.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
