"""Where models run, and how long they take there."""
