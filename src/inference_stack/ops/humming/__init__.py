"""`linear` of quantised weights by humming-kernels, a package installed beside ours and taken only where it is named."""
