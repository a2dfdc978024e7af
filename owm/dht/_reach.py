"""Where the peers are that the core knows by their bytes alone."""

from __future__ import annotations

from owm.dht._core_types import Contact
from owm.dht._interface import Provider
from owm.identity import PeerId
from owm.net import Network, is_local

__all__ = ["Reach", "provider_of", "provider_or_none"]


class Reach:
    """What the network says of a contact.

    Args:
        local: whether to dial addresses of our own network when others name them, as on a devnet.
    """

    def __init__(self, network: Network, *, local: bool) -> None:
        self._network = network
        self._local = local

    def connected(self, peer: bytes) -> Contact | None:
        """Where a connected peer says that it listens."""
        try:
            who = PeerId(peer)
        except ValueError:
            return None
        connection = self._network.connection(who) if self._network.is_connected(who) else None
        if connection is None:
            return None
        addresses = connection.addresses or (() if connection.inbound else (connection.address,))
        return Contact(peer, addresses) if addresses else None

    def dialable(self, contact: Contact) -> Contact | None:
        """The contact with the addresses that we may dial; None when it cannot be reached."""
        try:
            peer = PeerId(contact.id)
        except ValueError:
            return None
        addresses = contact.addresses
        if not self._local:
            addresses = tuple(a for a in addresses if not is_local(a))  # nobody has us probe our own network
        if not addresses and not self._network.is_connected(peer):
            return None
        return contact if addresses == contact.addresses else Contact(contact.id, addresses, contact.key)


def provider_of(contact: Contact) -> Provider:
    """Raises ValueError where the contact's id is none."""
    return Provider(PeerId(contact.id), contact.addresses)


def provider_or_none(contact: Contact) -> Provider | None:
    try:
        return provider_of(contact)
    except ValueError:
        return None  # what a stranger calls a peer id
