"""Pages, curves and tables made from result files."""
