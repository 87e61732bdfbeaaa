"""What each operation does to channels."""
