"""The network simulator: the cores that peers run, on an event heap with virtual time.

``owm simulate baseline --nodes 500 --seed 1`` runs a shipped scenario; ``docs/simulator.md`` shows how to write one.
"""
