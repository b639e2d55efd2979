"""Triton kernels, one file an operator; installed as `mcd.kernels`."""
