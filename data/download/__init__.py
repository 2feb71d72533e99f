"""Download a file whose md5 digest is known, over servers that are slow, break off or lie."""
