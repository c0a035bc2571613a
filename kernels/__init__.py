"""Triton kernels, one module for each op."""
