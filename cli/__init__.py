"""One file per command, imported only when chosen."""
