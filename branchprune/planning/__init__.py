"""From groups of channels to widths, and what those cost."""
