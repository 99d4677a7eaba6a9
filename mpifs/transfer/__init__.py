"""Files between ranks' local disks."""
