"""The bench: what the hub costs, beside a floor in C and the peers, in one run."""
