"""The methods under comparison: what a reader calls them, and what of train.json makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared_transforms.errors import QMRIError

__all__ = ["ABLATION", "COMPARED", "LABELS", "METHODS", "Method", "methods_of"]

# What a reader calls the methods.
LABELS = {
    "qsmrim_net": "QSMRim-Net",
    "no_oversampling": "QSMRim-Net without DeepSMOTE",
    "image_only": "images alone",
    "image_only_branches": "images alone, two branches",
    "rimnet": "RimNet",
    "aprl_network": "APRL (NN)",
    "aprl_forest": "APRL (RF)",
    "rim_contrast": "rim contrast",
    "size": "size alone",
}
# Those of the paper's Table 2 and of its Table 3, in its order, and what needs no training.
COMPARED = ("size", "rim_contrast", "aprl_network", "aprl_forest", "rimnet", "qsmrim_net")
ABLATION = ("image_only_branches", "image_only", "no_oversampling", "qsmrim_net")


@dataclass(frozen=True)
class Method:
    """A way to the scores of lesions.

    Attributes:
        name: as in the tables.
        overlays: files beside train.json that make it of QSMRim-Net; None for a method without a network.
        seeded: whether seeds change its answers.
    """

    name: str
    overlays: tuple[str, ...] | None = ()
    seeded: bool = True

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return LABELS[self.name]


METHODS = {
    method.name: method
    for method in (
        Method("qsmrim_net"),
        Method("no_oversampling", ("no_oversampling.json",)),
        Method("image_only", ("image_only.json",)),
        Method("image_only_branches", ("image_only.json", "branches.json")),
        Method("rimnet", ("rimnet.json",)),
        Method("aprl_network", ("aprl_network.json",)),
        Method("aprl_forest", None),
        Method("rim_contrast", None, seeded=False),
        Method("size", None, seeded=False),
    )
}


def methods_of(names: str | Sequence[str]) -> list[Method]:
    """Methods by name.

    Args:
        names: keys of :data:`METHODS`: one, several with commas between, a sequence, or ``"all"``.

    Raises:
        QMRIError: for a name that no method has.
    """
    wanted = names.split(",") if isinstance(names, str) else names
    wanted = [str(name).strip() for name in wanted]
    wanted = list(METHODS) if wanted == ["all"] else wanted
    if unknown := [name for name in wanted if name not in METHODS]:
        raise QMRIError(
            field="methods", found=", ".join(unknown), expected=f"all, or some of {', '.join(METHODS)}",
            remedy="correct the name",
        )  # fmt: skip
    return [METHODS[name] for name in wanted]
