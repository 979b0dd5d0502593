"""The operations between the matrix products of a decode step, each as one call that a CUDA graph can capture.

torch_kernels.py has them in torch, triton_kernels.py in Triton, and triton_launch.py launches the latter.
`candidates` in choice.py returns the sets that a device can run. Importing this package does not import
Triton. It depends on tensors only, not on models, cache classes or requests.
"""
