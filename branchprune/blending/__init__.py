"""The narrow twin that runs beside a model, and α, which moves from one to the other."""
