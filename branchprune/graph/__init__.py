"""What is tied to what in a network: channel groups, their producers and consumers."""
