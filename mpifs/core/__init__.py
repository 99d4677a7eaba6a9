"""Pure parts: no I/O, no clock, no threads, no log."""
