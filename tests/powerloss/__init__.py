"""Disks that fail: power loss and I/O errors, by libraries that are preloaded into the store.

`durable.c` logs what a process does to the files below a directory; `replay.py` works out of the
log what a disk could hold after the power failed at any moment. `faults.c` makes system calls
fail on command. Both are built when a test needs them; `shim.py` does that.
"""
