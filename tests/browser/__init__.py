"""Pages in a real browser: marker `browser`."""
