"""What models cost: latency, memory, training, and the zoo of public networks."""
