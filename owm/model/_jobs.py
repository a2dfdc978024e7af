"""What an engine process was asked for: which jobs there are, and which of them nobody waits for any more."""

from __future__ import annotations

import threading

__all__ = ["Jobs", "Refusal"]


class Refusal(Exception):
    """The request cannot be run; ``code`` tells the parent which error to raise."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Jobs:
    """The jobs that are not over; safe between threads. Holds nothing of those that are over."""

    def __init__(self) -> None:
        self._cancelled: dict[int, bool] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._cancelled)

    def begin(self, number: int) -> None:
        """It was asked for."""
        self._cancelled[number] = False

    def cancel(self, number: int) -> None:
        """Nobody waits for it; means nothing for one that is over, since the two cross on their ways."""
        with self._lock:
            if number in self._cancelled:
                self._cancelled[number] = True

    def is_cancelled(self, number: int) -> bool:
        return self._cancelled.get(number, True)

    def end(self, number: int) -> None:
        """It is over, however it ended."""
        with self._lock:
            self._cancelled.pop(number, None)
