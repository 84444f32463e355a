"""The fleet on a virtual clock: the pure rooms themselves, with devices replaced by cost models and faults by seed."""
