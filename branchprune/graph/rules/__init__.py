"""What each operation does to channels: a function a kind of operation, and the tables of them."""
