"""BOLT 1 and 9: bytes to frozen dataclasses and back; no I/O, no state."""
