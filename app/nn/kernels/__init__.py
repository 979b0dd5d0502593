"""The small operations between a step's matrix products, each as one call that can be replayed in a CUDA graph.

twins.py has them in torch, fused.py as Triton kernels; `choose` in choice.py gives one set or the other. Importing this
package does not import Triton. Knows tensors; no model, no cache class and no request.
"""
