"""What humming-kernels documents of quantised products with 16-bit activations, in torch: same names, same checks."""
