"""What a peer does for others: one file per role, each of which only wires services together."""
