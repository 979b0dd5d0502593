"""Audio utilities: analyse, change, encode and decode samples.

This package does not depend on HTTP, engines or voices. Every streaming class is a `stages.Stage` (push, flush) or an
`encoders.Encoder` (encode, flush, close). Use an instance for one response, and in one thread at a time. Different
instances may run in different threads.
"""
