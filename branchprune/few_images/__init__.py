"""A trained model made small from a few images without labels."""
