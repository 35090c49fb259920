"""Linear least squares over rows that come in parts: what is kept has the size of the answer, not of the rows."""

from __future__ import annotations

import torch


class NormalEquations:
    """Add up rows, then solve for the map from what is given to what is wanted; in float64.

    How the rows are parted into batches changes nothing but the last digits.

    Attributes:
        rows: How many rows were added.
    """

    def __init__(self, width: int, *, shifts: bool, device: torch.device) -> None:
        """Begin with no rows.

        Args:
            width: Entries of a row, given and wanted alike.
            shifts: Whether the map may add a constant, too.
            device: Where the sums are; on one without float64 they are on the CPU.
        """
        device = torch.device("cpu") if device.type == "mps" else device
        size = width + shifts
        self._width, self._shifts = width, shifts
        self._gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._cross = torch.zeros(size, width, dtype=torch.float64, device=device)
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, given: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add rows: two matrices of rows x width."""
        given, wanted = (rows.to(self._gram.device).double() for rows in (given, wanted))
        if self._shifts:
            given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
        self._gram += given.T @ given
        self._cross += given.T @ wanted
        self._square += wanted.square().sum()
        self.rows += len(given)

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the matrix M and the shift c for which ``given @ M + c`` is nearest to what is wanted.

        Args:
            ridge: How much it costs that M is not 0, against the mean square of what is given; above 0.
        """
        penalty = torch.zeros_like(self._gram)
        inner = penalty[: self._width, : self._width].diagonal()
        inner += ridge * self._gram.diagonal()[: self._width].mean()
        answer = torch.linalg.lstsq(self._gram + penalty, self._cross).solution
        return answer[: self._width], answer[self._width] if self._shifts else None

    def explained(self, matrix: torch.Tensor, shift: torch.Tensor | None) -> float:
        """Return which share of the square of what is wanted a map gives, at most 1; all of it, if that is nothing."""
        answer = matrix if shift is None else torch.cat([matrix, shift[None]])
        lost = self._square - 2 * (answer * self._cross).sum() + (answer * (self._gram @ answer)).sum()
        return float(1 - lost / self._square) if self._square else 1.0
