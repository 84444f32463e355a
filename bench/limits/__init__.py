"""What the processor allows at most, beside what was measured: which of the wanted speeds are possible at all."""
