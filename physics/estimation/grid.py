"""Variable projection on a grid: a dictionary of unit-norm magnitude signals, searched by one matrix product.

The amplitude A enters linearly and is eliminated: of an atom ``a`` of unit norm, the best non-negative amplitude is
``max(<data, a>, 0)`` and the sum of squares left is ``|data|**2 - max(<data, a>, 0)**2``. Atoms are magnitudes on a
dense grid of B and T1 (or of T2), so each polarity of an inversion recovery is among them, that without a zero
crossing included, and no search over polarities is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physics.relaxometry import SignalModel

__all__ = ["CHUNK", "Dictionary", "build_dictionary", "chunks", "default_grid", "grid_search", "polarity_splits"]

CHUNK = 4096  # voxels worked on at once: the products of one chunk stay in the cache
_RANGES = {"B": (1.0, 2.1, 12), "T1": (0.03, 8.0, 56), "T2": (2e-3, 5.0, 100)}  # lowest, highest, number


def chunks(n_voxels: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices that cover ``n_voxels`` in pieces of at most ``size``."""
    return (slice(start, min(start + size, n_voxels)) for start in range(0, n_voxels, size))


def default_grid(model: SignalModel, bounds: Mapping[str, tuple[float, float]] | None = None) -> dict[str, Tensor]:
    """Grid of the nonlinear parameters: B linear, T1 [s] and T2 [s] logarithmic, inside the bounds.

    Raises:
        ValueError: if the model has a nonlinear parameter other than B, T1 and T2.
    """
    grid = {}
    for name in model.parameter_names[1:]:
        if name not in _RANGES:
            raise ValueError(f"there is a default grid for {tuple(_RANGES)} only, give one for {name!r}")
        low, high, number = _RANGES[name]
        if bounds is not None:
            low, high = max(low, bounds[name][0]), min(high, bounds[name][1])
            low, high = (low, high) if low < high else bounds[name]
        if name == "B":
            grid[name] = torch.linspace(low, high, number, dtype=torch.float64)
        else:
            grid[name] = torch.linspace(math.log(low), math.log(high), number, dtype=torch.float64).exp()
    return grid


@dataclass(frozen=True)
class Dictionary:
    """Unit-norm magnitude signals on a grid of B and of a relaxation time.

    Attributes:
        inversion: grid of B, ``[G]``; a single 1 for models without B.
        relaxation: grid of T1 or T2 [s], ``[K]``.
        atoms: signals of unit norm, ``[G, K, N]``.
        norms: their norms at A = 1, ``[G, K]``.
        has_inversion: whether B is a parameter of the model.
    """

    inversion: Tensor
    relaxation: Tensor
    atoms: Tensor
    norms: Tensor
    has_inversion: bool

    def correlate(self, data: Tensor) -> Tensor:
        """Non-negative projections on each atom, ``[G, K, V]``, of data ``[N, V]``."""
        size_b, size_t, n_images = self.atoms.shape
        return (self.atoms.reshape(-1, n_images) @ data).clamp_(min=0.0).reshape(size_b, size_t, -1)

    def best_relaxation(self, correlation: Tensor, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the best relaxation time at the B of index ``index_b`` and its projection, each ``[V]``."""
        voxels = torch.arange(correlation.shape[2], device=correlation.device)
        value, index_t = correlation[index_b, :, voxels].max(1)
        return index_t, value

    def parameters(self, index_b: Tensor, index_t: Tensor, projection: Tensor) -> Tensor:
        """Parameters ``[Q, V]`` of atoms chosen by index, with the amplitude from the projection."""
        amplitude = projection / self.norms[index_b, index_t]
        rows = [amplitude, self.inversion[index_b], self.relaxation[index_t]]
        return torch.stack(rows if self.has_inversion else [rows[0], rows[2]])

    def search(self, data: Tensor) -> Tensor:
        """Parameters ``[Q, V]`` of the best atom for data ``[N, V]`` of one chunk."""
        correlation = self.correlate(data)
        index_b = correlation.amax(1).argmax(0)
        return self.parameters(index_b, *self.best_relaxation(correlation, index_b))


def _signed_atoms(model: SignalModel, grid: Mapping[str, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed signals at A = 1 as ``[N, G, K]`` with the grids ``[G]`` and ``[K]``."""
    names = model.parameter_names[1:]
    if len(names) not in (1, 2) or (len(names) == 2 and names[0] != "B"):
        raise ValueError(f"a dictionary takes models of (A, T) or (A, B, T), got {model.parameter_names}")
    relaxation = torch.as_tensor(grid[names[-1]], dtype=like.dtype, device=like.device)
    inversion = relaxation.new_ones(1)
    if len(names) == 2:
        inversion = torch.as_tensor(grid["B"], dtype=like.dtype, device=like.device)
    b, t = torch.meshgrid(inversion, relaxation, indexing="ij")
    parameters = (torch.ones_like(t), b, t) if len(names) == 2 else (torch.ones_like(t), t)
    return model.signed(*parameters)[0], inversion, relaxation


def build_dictionary(model: SignalModel, grid: Mapping[str, Tensor] | None = None, *, like: Tensor) -> Dictionary:
    """Dictionary of a model.

    Args:
        model: signal model whose times are plain lists ``[N]``.
        grid: values of each nonlinear parameter by name, each 1-D; by default that of :func:`default_grid`.
        like: tensor whose dtype and device the dictionary takes.

    Raises:
        ValueError: if the times of the model differ between voxels, or the parameters are not (A, T) or (A, B, T).
    """
    for name, values in model.named_buffers():
        if values.ndim > 1:
            raise ValueError(
                f"estimation needs one list of times for all voxels, but {name} has shape {tuple(values.shape)}: "
                "fit the voxels of each acquisition apart"
            )
    signed, inversion, relaxation = _signed_atoms(model, default_grid(model) if grid is None else grid, like)
    atoms = signed.abs().movedim(0, -1)
    norms = atoms.norm(dim=-1).clamp(min=torch.finfo(atoms.dtype).tiny)
    atoms = (atoms / norms[..., None]).contiguous()
    return Dictionary(inversion, relaxation, atoms, norms, has_inversion="B" in model.parameter_names)


def polarity_splits(model: SignalModel, grid: Mapping[str, Tensor] | None = None) -> Tensor:
    r"""Numbers of images before the zero crossing, :math:`|\{n : s_n < 0\}|`, that occur among the atoms, sorted.

    A dictionary with every polarity has all of 0 (no image inverted) to N (all inverted), for times in ascending order.
    """
    signed, _, _ = _signed_atoms(model, default_grid(model) if grid is None else grid, model.times)
    return (signed < 0).sum(0).unique()


def grid_search(model: SignalModel, data: Tensor, grid: Mapping[str, Tensor] | None = None) -> Tensor:
    r"""Least-squares parameters among the atoms of a grid, A being eliminated analytically.

    .. math:: \hat\theta = \arg\max_{\theta} \, \max(\langle m, a_\theta \rangle, 0), \qquad
        \hat A = \frac{\max(\langle m, a_{\hat\theta} \rangle, 0)}{\lVert s_{\hat\theta} \rVert}, \qquad
        a_\theta = s_\theta / \lVert s_\theta \rVert

    with :math:`s_\theta` the magnitude signal at A = 1. Source: Golub and Pereyra, SIAM J. Numer. Anal. 10:413 (1973),
    variable projection.

    Args:
        model: signal model whose times are plain lists ``[N]``.
        data: magnitudes ``[N, *voxels]``.
        grid: values of each nonlinear parameter by name, each 1-D; by default 12 B and 56 T1, or 100 T2.

    Returns:
        Parameters ``[Q, *voxels]`` in the units of the model; dtype and device of ``data``.

    Raises:
        ValueError: if the number of images is not that of the model, or its times differ between voxels.
    """
    if data.shape[0] != model.n_images:
        raise ValueError(f"data must have {model.n_images} images on its first axis, got shape {tuple(data.shape)}")
    with torch.no_grad():
        dictionary = build_dictionary(model, grid, like=data)
        flat = data.reshape(data.shape[0], math.prod(data.shape[1:]))
        found = flat.new_empty(len(model.parameter_names), flat.shape[1])
        for part in chunks(flat.shape[1]):
            found[:, part] = dictionary.search(flat[:, part])
    return found.reshape((len(found), *data.shape[1:]))
