"""What a GossipSub core counts."""

from __future__ import annotations

__all__ = ["Counters"]


class Counters:
    """Counted since start."""

    __slots__ = (
        "delivered",
        "duplicates",
        "graylisted",
        "ignored",
        "over_budget",
        "published",
        "rejected",
    )

    def __init__(self) -> None:
        self.published = 0
        self.delivered = 0  #: distinct messages accepted
        self.duplicates = 0  #: copies of messages seen already
        self.rejected = 0
        self.ignored = 0
        self.over_budget = 0  #: messages dropped unread, their sender having used up its validations
        self.graylisted = 0  #: RPCs of peers below the graylist threshold
